"""Attention to a prompt: so few keys that all fit in one tile. Plain Triton; there is little to multiply."""

import torch
import triton
from triton import language as tl

_QUERIES = 64
_HEAD = tl.constexpr(64)


@triton.jit
def _attend(
    q,
    kv,
    y,
    factor,
    queries,
    keys,
    width,
    q_row,
    kv_row,
    kv_key,
    bm: tl.constexpr,
    bn: tl.constexpr,
    out8: tl.constexpr,
):
    row = tl.program_id(2).to(tl.int64)
    own = tl.program_id(1) * _HEAD + tl.arange(0, _HEAD)
    query = tl.program_id(0) * bm + tl.arange(0, bm)
    key = tl.arange(0, bn)
    inside = query[:, None] < queries
    offsets = row * q_row + query[:, None] * width + own[None, :]
    of_keys = kv + row * kv_row + key[:, None] * kv_key + own[None, :]
    a = tl.load(q + offsets, mask=inside, other=0.0)
    k = tl.load(of_keys, mask=key[:, None] < keys, other=0.0)
    v = tl.load(of_keys + width, mask=key[:, None] < keys, other=0.0)
    scores = tl.dot(a, k.T) * (0.125 * 1.4426950408889634)  # 1 / sqrt(64), and for powers of 2
    scores = tl.where(key[None, :] < keys, scores, -float("inf"))
    parts = tl.exp2(scores - tl.max(scores, 1)[:, None])
    mixed = tl.dot(parts.to(a.dtype), v) / tl.sum(parts, 1)[:, None]
    if out8:
        mixed = tl.minimum(tl.maximum(mixed * tl.load(factor), -448.0), 448.0)
    tl.store(y + offsets, mixed.to(y.dtype.element_ty), mask=inside)


def attend(query: torch.Tensor, context: torch.Tensor, output_factor: torch.Tensor | None) -> torch.Tensor:
    """See `half.attend`."""
    rows, queries, width = query.shape
    query = query.contiguous()
    kind = query.dtype if output_factor is None else torch.float8_e4m3fn
    y = torch.empty(query.shape, device=query.device, dtype=kind)
    _attend[(triton.cdiv(queries, _QUERIES), width // 64, rows)](
        query,
        context,
        y,
        output_factor,
        queries,
        context.shape[1],
        width,
        query.stride(0),
        context.stride(0),
        context.stride(1),
        bm=_QUERIES,
        bn=128,
        out8=output_factor is not None,
        num_warps=4,
        num_stages=1,
    )
    return y
