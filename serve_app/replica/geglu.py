"""Feed-forward layers' gated products in one kernel, where there is one of ours."""

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from torch import nn

from serve_app.replica.kernels import gated


class FusedGeglu(nn.Module):
    """The gated first half of a feed-forward layer. `proj` stays its layer, whose weight adapters may change."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = gated.geglu(value.reshape(-1, value.shape[-1]), self.proj.weight, self.proj.bias)
        return made.reshape(*value.shape[:-1], -1)


def fuse_geglu(model: nn.Module) -> int:
    """Make feed-forward layers of 16-bit floats compute their product and its gates at once; return how many.

    Each number is summed up in the same order whatever else is computed, so pictures do not depend on it.
    """
    fused = 0
    for layers in [module.net for module in model.modules() if isinstance(module, FeedForward)]:
        if type(layers[0]) is GEGLU and _fits(layers[0].proj):
            layers[0] = FusedGeglu(layers[0].proj)
            fused += 1
    return fused


def _fits(proj: nn.Module) -> bool:
    return (
        type(proj) is nn.Linear
        and proj.weight.dtype in (torch.bfloat16, torch.float16)
        and proj.bias is not None
        and proj.out_features % 256 == 0
        and proj.in_features % 64 == 0
    )
