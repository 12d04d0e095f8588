"""How the UNet runs: eagerly, with compiled blocks, or compiled as a whole."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel

from serve_app.config import Compile
from serve_app.replica.attention import blocks
from serve_app.replica.compilation import BY_RULE, Compiled, Eager, Forward
from serve_app.replica.cuda_graphs import with_cuda_graphs
from serve_app.replica.kept_models import KeptModels

_MOST_COMPILATIONS = 64


class UNetInputs(NamedTuple):
    """The inputs of the UNet's forward, in this order, all with rows first; `guidance` only if it takes that.

    `sample` is (rows, channels, h, w), `timestep` (rows,); for the others see `conditioning.Conditioning`. `context`
    may have half as many rows.
    """

    sample: torch.Tensor
    timestep: torch.Tensor
    context: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor
    guidance: torch.Tensor | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Those that there are: a forward takes nothing else."""
        return tuple(part for part in self if part is not None)


def make_forward(unet: UNet2DConditionModel, mode: Compile) -> Forward[torch.Tensor]:
    """Return the UNet's forward for `engine.compile`. It takes `UNetInputs.tensors` and returns the prediction."""
    return with_cuda_graphs(make_forwards([unet], mode)[0], unet.device)


def make_forwards(
    unets: Sequence[UNet2DConditionModel], mode: Compile, kept: KeptModels | None = None
) -> Sequence[Forward[torch.Tensor]]:
    """Return a forward, without CUDA graphs, for each of several UNets that differ only in their weights."""
    first, *others = unets
    match mode:
        case "none":
            return [eager(unet) for unet in unets]
        case "regional":
            return [_CompiledBlocks(unet) for unet in unets]
        case "full":
            compiled = Compiled(_predict, first, {"conv_1x1_as_mm": True}, kept)
            return [compiled, *(compiled.on(unet) for unet in others)]


def eager(unet: UNet2DConditionModel) -> Eager:
    """Return a forward that runs the UNet eagerly."""
    return Eager(_predict, unet)


class _CompiledBlocks(Eager):
    """Compiles the transformer blocks, of which SDXL has 70, once for any size.

    The compiler treats a single row as a separate case.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__(_predict, unet)
        for block in blocks(unet):
            # Compile `forward`, not the module, whose hook differs for each block.
            block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True, options=dict(BY_RULE))

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        with torch.compiler.set_stance("eager_on_recompile"):
            return super().__call__(*inputs)

    def warm_up(self, *inputs: torch.Tensor) -> None:
        from serve_app.replica.compiler_choices import (
            our_choices,  # imports the compiler, which only a compilation needs
        )

        # The compiler's settings apply only to this thread.
        with torch._dynamo.config.patch(recompile_limit=_MOST_COMPILATIONS), our_choices():
            super().__call__(*inputs)
            super().__call__(*(part[:1] for part in inputs))


def _predict(
    unet: UNet2DConditionModel,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    pooled: torch.Tensor,
    time_ids: torch.Tensor,
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Take the fields of `UNetInputs` one by one, since a compiled model takes only tensors."""
    added = {"text_embeds": pooled, "time_ids": time_ids}
    prediction: torch.Tensor = unet(
        sample,
        timestep,
        encoder_hidden_states=context,
        timestep_cond=guidance,
        added_cond_kwargs=added,
        return_dict=False,
    )[0]
    return prediction
