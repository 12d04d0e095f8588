"""Which linear layers to convert to 8-bit floats, and with which scales: time of a step, distance from bfloat16."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn

from benchmarks.conditions import Conditions
from benchmarks.probes.unet import compiled_call, cosine, inputs, milliseconds
from serve_app.config import ModelConfig
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.loading import load
from serve_app.replica.quantize import large_linears, to_fp8

_FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FP8).max


class RowwiseFp8Linear(nn.Module):
    """A linear layer in 8-bit floats with a scale per token, computed at each call, and a scale per output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.float()
        self.weight_scale = nn.Buffer((weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / _LARGEST).t().contiguous())
        self.weight = nn.Buffer((weight / self.weight_scale.t()).to(_FP8))
        self.bias = linear.bias

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        rows = value.reshape(-1, value.shape[-1]).float()
        scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / _LARGEST
        product: torch.Tensor = torch._scaled_mm(
            (rows / scale).to(_FP8),
            self.weight.t(),
            scale_a=scale,
            scale_b=self.weight_scale,
            out_dtype=value.dtype,
            use_fast_accum=True,
        )
        return (product + self.bias if self.bias is not None else product).reshape(*value.shape[:-1], -1)


def to_rowwise(checkpoint: Checkpoint, fewest_features: int) -> int:
    """Replace the layers that `to_fp8` replaces; return how many."""
    chosen = large_linears(checkpoint.unet, fewest_features)
    for name, linear in chosen:
        checkpoint.unet.set_submodule(name, RowwiseFp8Linear(linear))
    return len(chosen)


def probe(conditions: Conditions) -> Iterator[str]:
    args, size = conditions.args(), conditions.workload.size
    references: dict[int, torch.Tensor] = {}
    for name, quantize in _variants(args.model, checkpoint_widths(load(args))):
        torch._dynamo.reset()
        checkpoint = load(args)
        given = {images: inputs(checkpoint, 2 * images, size, size) for images in (1, 4)}  # before the layers change
        try:
            name = f"{name}, {quantize(checkpoint)} layers"
            with torch.inference_mode():
                call = compiled_call(checkpoint)
                for images, part in given.items():
                    prediction = call(*part)
                    likeness = cosine(prediction, references.setdefault(images, prediction.clone()))
                    yield f"{name}: {images} images {milliseconds(call, part):.1f} ms, cosine {likeness:.6f}"
        except Exception as error:
            yield f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:160]}"


def _variants(model: ModelConfig, widths: Sequence[int]) -> Iterator[tuple[str, Callable[[Checkpoint], int]]]:
    yield "not quantised", lambda _: 0
    for width in widths:
        yield f"one scale, {width} and wider", partial(to_fp8, model=model, fewest_features=width)
        yield f"a scale a row, {width} and wider", partial(to_rowwise, fewest_features=width)


def checkpoint_widths(checkpoint: Checkpoint) -> list[int]:
    """Return the widths of the UNet's transformer levels, narrowest first."""
    config = checkpoint.unet.config
    return sorted(
        {
            width
            for width, kind in zip(config.block_out_channels, config.down_block_types, strict=True)
            if "CrossAttn" in kind
        }
    )
