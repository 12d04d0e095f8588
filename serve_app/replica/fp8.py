"""Layers in 8-bit floats."""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from torch import nn

from serve_app.replica.kernels import fp8
from serve_app.replica.kernels.fp8 import LARGEST, rounded

_LEAST = 1e-12
"""What the largest of numbers counts as where all are zeros: their scale must not be zero."""


class Fp8Layer(nn.Module):
    """A layer whose weight and input are 8-bit floats, each with one scale. Sums, bias and output keep their type.

    `pristine` is the weight before, if it was kept.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, peak: torch.Tensor, keep: bool = False) -> None:
        """Take a layer and the largest absolute value of its inputs."""
        super().__init__()
        weight = layer.weight.float()
        self.weight_scale = nn.Buffer(_scale(weight))
        self.input_scale = nn.Buffer(peak.float().clamp(min=_LEAST) / LARGEST)
        self.input_factor = nn.Buffer(1 / self.input_scale)  # GPUs divide slowly
        self.weight = nn.Buffer(self._laid_out((weight / self.weight_scale).to(torch.float8_e4m3fn)))
        self.bias = layer.bias
        self.pristine = layer.weight.detach() if keep else None
        self._type = layer.weight.dtype

    def take(self, weight: torch.Tensor) -> None:
        """Quantize another weight, in its place in memory."""
        self.weight_scale.copy_(_scale(weight.float()))
        self.weight.copy_(self._laid_out((weight.float() / self.weight_scale).to(torch.float8_e4m3fn)))

    def own_weight(self) -> None:
        """Stop sharing the weight with another layer."""
        self.weight_scale = nn.Buffer(self.weight_scale.clone())
        self.weight = nn.Buffer(self.weight.clone())

    def _laid_out(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight as the layer keeps it."""
        return weight


class Fp8Linear(Fp8Layer):
    """A linear layer. What it is given as 8-bit floats has its scale already."""

    def rounded(self, value: torch.Tensor) -> torch.Tensor:
        """Return an input as 8-bit floats."""
        return rounded(value, self.input_factor)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        scaled = value if value.dtype == self.weight.dtype else self.rounded(value)
        product: torch.Tensor = torch._scaled_mm(
            scaled.reshape(-1, scaled.shape[-1]),
            self.weight.t(),
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=self._type,
            use_fast_accum=True,
        )
        return product.reshape(*value.shape[:-1], -1)


class Fp8Geglu(nn.Module):
    """The gated first half of a feed-forward layer, whose second half `following` takes 8-bit floats."""

    def __init__(self, proj: Fp8Linear, following: Fp8Linear) -> None:
        super().__init__()
        self.proj = proj
        self.output_factor = following.input_factor

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        proj = self.proj
        scaled = proj.rounded(value).reshape(-1, value.shape[-1])
        scales = proj.weight_scale, proj.input_scale, self.output_factor
        gated: torch.Tensor = fp8.geglu(scaled, proj.weight, proj.bias, *scales)
        return gated.reshape(*value.shape[:-1], -1)


class Fp8Conv(Fp8Layer):
    """A 3x3 convolution with a margin of 1."""

    def forward(self, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        scaled = rounded(value, self.input_factor).permute(0, 2, 3, 1).contiguous()
        made: torch.Tensor = fp8.conv(scaled, self.weight, self.bias, self.weight_scale, self.input_scale)
        return made.permute(0, 3, 1, 2)

    def _laid_out(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.permute(0, 2, 3, 1).flatten(1).contiguous()


def use_geglu(model: nn.Module) -> None:
    """Make feed-forward layers whose products are both in 8-bit floats compute the first with its gates at once."""
    for layers in [module.net for module in model.modules() if isinstance(module, FeedForward)]:
        first, following = layers[0], layers[2]
        if isinstance(first, GEGLU) and isinstance(first.proj, Fp8Linear) and isinstance(following, Fp8Linear):
            columns, deep = first.proj.weight.shape
            if columns % 256 == 0 and deep % 128 == 0 and first.proj.bias is not None:
                layers[0] = Fp8Geglu(first.proj, following)


def _scale(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().amax().clamp(min=_LEAST) / LARGEST
