"""The VAE's attention as two plain products: its one head is wider than fast attention kernels take."""

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.attention_processor import Attention

_MOST_SCORES = 1 << 26
"""How many scores there may be at once; 256 MiB in float32."""


class _Products:
    """Computes diffusers' attention of one head with products of matrices. Scores and softmax stay in float32.

    For 1024x1024 pixels these are 16384 queries of 512 numbers. On an H100 torch's attention takes 4.6 of the 25 ms of
    a decoding for them.
    """

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, temb: None = None, **__: Any) -> torch.Tensor:
        assert temb is None, "a VAE has no timestep; diffusers looks for the argument by its name"
        tokens = attn.group_norm(hidden_states).flatten(2).transpose(1, 2)
        query, key, value = (to(tokens) for to in (attn.to_q, attn.to_k, attn.to_v))
        mixed = torch.cat(
            [_attend(part, key, value) for part in query.split(max(1, _MOST_SCORES // key.shape[1]), dim=1)], dim=1
        )
        projected = attn.to_out[0](mixed).transpose(1, 2).unflatten(2, hidden_states.shape[2:])
        result: torch.Tensor = (projected + hidden_states) / attn.rescale_output_factor
        return result


def use_products(vae: AutoencoderKL | AutoencoderTiny) -> None:
    """Make a VAE's attention use products."""
    for module in vae.modules():
        if isinstance(module, Attention) and _fits(module):
            module.set_processor(_Products())


def _fits(attn: Any) -> bool:
    plain = attn.spatial_norm is None and attn.norm_q is None and attn.norm_k is None
    return bool(attn.heads == 1 and attn.residual_connection and attn.group_norm is not None and plain)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    scores = _scores(query, key) * query.shape[-1] ** -0.5
    return torch.bmm(scores.softmax(-1).to(value.dtype), value)


def _scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    keys = key.transpose(1, 2)
    if query.device.type == "cuda" and query.dtype != torch.float32:
        return torch.bmm(query, keys, out_dtype=torch.float32)
    return torch.bmm(query.float(), keys.float())
