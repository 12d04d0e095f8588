"""The UNet's attention: what depends on the prompt alone is computed once for a prompt, not at every step.

SDXL's UNet has 70 cross-attentions; their keys and values of the prompt are the same at all steps. `prepare` makes the
UNet take them, side by side, as its `encoder_hidden_states`; `prompt_context` makes them from a prompt's tokens.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch.nn import functional as F  # noqa: N812, the usual name


class _SelfAttention:
    """Queries, keys and values from one matrix product."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return _attend(attn, *attn.to_qkv(hidden_states).chunk(3, dim=-1))


class _PromptAttention:
    """Keys and values from a context, `width` numbers each for every token, from `start` on."""

    def __init__(self, start: int, width: int) -> None:
        self._start, self._width = start, width

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        own = encoder_hidden_states[..., self._start : self._start + 2 * self._width]
        return _attend(attn, attn.to_q(hidden_states), *own.chunk(2, dim=-1))


def prepare(unet: UNet2DConditionModel) -> None:
    """Make the UNet take a prompt's context for its tokens."""
    start = 0
    for block in _blocks(unet):
        block.attn1.fuse_projections()
        del block.attn1.to_q, block.attn1.to_k, block.attn1.to_v
        block.attn1.set_processor(_SelfAttention())
        width = block.attn2.to_k.out_features
        block.attn2.set_processor(_PromptAttention(start, width))
        start += 2 * width


def prompt_context(unet: UNet2DConditionModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the context of a prepared UNet, (1, length, keys and values of all cross-attentions), of (1, length, width) tokens."""
    return torch.cat([to(tokens) for block in _blocks(unet) for to in (block.attn2.to_k, block.attn2.to_v)], dim=-1)


def _blocks(unet: UNet2DConditionModel) -> Iterator[Any]:
    return (module for module in unet.modules() if isinstance(module, BasicTransformerBlock))


def _attend(attn: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    query, key, value = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    projected: torch.Tensor = attn.to_out[0](mixed)
    return projected
