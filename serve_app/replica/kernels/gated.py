"""Gated products of 16-bit floats. On Hopper GPUs they are a kernel of ours, elsewhere plain torch, the reference.

Operators of torch's library can be compiled ahead of time and captured. Whoever loads such a model must have imported
this file.
"""

import torch
from torch.nn import functional as F  # noqa: N812, the usual name


def geglu_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return values * gelu(gates), (m, n) in the type of `x` (m, k).

    Of the product of `x` and `weight` (2n, k), the first n columns are values, the others gates. Only the result is
    rounded; torch's own layers round the product too.
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
