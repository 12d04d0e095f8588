"""Operators of 16-bit floats. On Hopper GPUs they are kernels of ours, elsewhere plain torch, which is the reference.

Only results are rounded; torch's own layers round what is between them too.

Operators of torch's library can be compiled ahead of time and captured. Whoever loads such a model must have imported
this file.
"""

import torch
from torch.nn import functional as F  # noqa: N812, the usual name

from serve_app.replica.kernels.fp8 import rounded

MOST_KEYS = 128


def geglu_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return values * gelu(gates), (m, n) in the type of `x` (m, k).

    Of the product of `x` and `weight` (2n, k), the first n columns are values, the others gates.
    """
    values, gates = (x.float() @ weight.float().t() + bias.float()).chunk(2, dim=-1)
    return (values * F.gelu(gates)).to(x.dtype)


geglu = torch.library.custom_op("parallel_sdxl::geglu", geglu_reference, mutates_args=())
"""`geglu_reference`, or what does the same as fast as can be."""


@geglu.register_kernel("cuda")
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    from serve_app.replica.kernels.geglu import geglu

    return geglu(x, weight, bias)


@geglu.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2)


def conv_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return a 3x3 convolution with a margin of 1, (rows, height, width, n) in the type of `x`.

    `x` is (rows, height, width, channels), `weight` (n, 9 * channels: pixel by pixel).
    """
    kernel = weight.float().unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
    sums = F.conv2d(x.float().permute(0, 3, 1, 2), kernel, bias.float(), padding=1)
    return sums.permute(0, 2, 3, 1).to(x.dtype).contiguous()


conv = torch.library.custom_op("parallel_sdxl::conv", conv_reference, mutates_args=())
"""`conv_reference`, or what does the same as fast as can be."""


@conv.register_kernel("cuda")
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    from serve_app.replica.kernels.conv import conv

    return conv(x, weight, bias)


@conv.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:3], weight.shape[0])


def attend_reference(
    query: torch.Tensor, context: torch.Tensor, output_factor: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the attention of heads of 64 to at most `MOST_KEYS` keys, (rows, queries, width) like `query`.

    `context` (rows, keys, 2 * width) holds keys and values. With an `output_factor` the output is 8-bit floats.
    """
    heads = (part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in (query, *context.chunk(2, dim=-1)))
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return mixed.contiguous() if output_factor is None else rounded(mixed, output_factor)


attend = torch.library.custom_op("parallel_sdxl::attend", attend_reference, mutates_args=())
"""`attend_reference`, or what does the same as fast as can be."""


@attend.register_kernel("cuda")
def _(query: torch.Tensor, context: torch.Tensor, output_factor: torch.Tensor | None = None) -> torch.Tensor:
    from serve_app.replica.kernels.cross import attend

    return attend(query, context, output_factor)


@attend.register_fake
def _(query: torch.Tensor, context: torch.Tensor, output_factor: torch.Tensor | None = None) -> torch.Tensor:
    return query.new_empty(query.shape, dtype=query.dtype if output_factor is None else torch.float8_e4m3fn)
