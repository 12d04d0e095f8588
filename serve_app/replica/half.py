"""Layers in 16-bit floats by kernels of ours. Their weights stay where they are, so that adapters can change them.

Each number is summed up in the same order whatever else is computed.
"""

from typing import Any, Self

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from torch import nn

from serve_app.replica.attention import PromptAttention, blocks
from serve_app.replica.fp8 import Fp8Linear
from serve_app.replica.kernels import convolutions, half

_TYPES = torch.bfloat16, torch.float16


class HalfGeglu(nn.Module):
    """The gated first half of a feed-forward layer: the product and its gates at once."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = half.geglu(value.reshape(-1, value.shape[-1]), self.proj.weight, self.proj.bias)
        return made.reshape(*value.shape[:-1], -1)


class HalfConv(nn.Conv2d):
    """A 3x3 convolution with a margin of 1. Its weight should lie channels last."""

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        """Return one with a convolution's weights."""
        ours = cls(conv.in_channels, conv.out_channels, 3, padding=1, device="meta")
        ours.weight, ours.bias = conv.weight, conv.bias
        return ours.train(conv.training)

    def forward(self, input: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        made: torch.Tensor = half.conv(input.permute(0, 2, 3, 1).contiguous(), weight, self.bias)
        return made.permute(0, 3, 1, 2)


class HalfPromptAttention(PromptAttention):
    """Attention to a prompt in one kernel; for prompts of more than one chunk, torch's."""

    def answers(self, attn: Any, query: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        if context.shape[1] > half.MOST_KEYS:
            return super().answers(attn, query, context)
        out = attn.to_out[0]
        output: torch.Tensor = out(
            half.attend(query, context, out.input_factor if isinstance(out, Fp8Linear) else None)
        )
        return output


def use_kernels(model: nn.Module) -> int:
    """Make a model's layers of 16-bit floats use our kernels where they can; return how many."""
    gated = [
        module.net
        for module in model.modules()
        if isinstance(module, FeedForward) and type(module.net[0]) is GEGLU and _fits(module.net[0].proj)
    ]
    for layers in gated:
        layers[0] = HalfGeglu(layers[0].proj)
    convs = {name: conv for name, conv in convolutions(model).items() if conv.weight.dtype in _TYPES}
    for name, conv in convs.items():
        model.set_submodule(name, HalfConv.of(conv))
    to_prompts = [attn for attn in (block.attn2 for block in blocks(model)) if _fits_a_tile(attn)]
    for attn in to_prompts:
        attn.set_processor(HalfPromptAttention())
    return len(gated) + len(convs) + len(to_prompts)


def _fits(proj: nn.Module) -> bool:
    return (
        type(proj) is nn.Linear
        and proj.weight.dtype in _TYPES
        and proj.bias is not None
        and proj.out_features % 256 == 0
        and proj.in_features % 64 == 0
    )


def _fits_a_tile(attn: Any) -> bool:
    return attn.inner_dim == 64 * attn.heads and attn.to_k.weight.dtype in _TYPES
