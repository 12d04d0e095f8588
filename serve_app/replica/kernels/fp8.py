"""Operators of 8-bit floats. On Hopper GPUs they are kernels of ours, elsewhere plain torch, which is the reference.

Operators of torch's library can be compiled ahead of time and captured. Whoever loads such a model must have imported
this file.
"""

import torch
from torch.nn import functional as F  # noqa: N812, the usual name

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def rounded(value: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return a value times a factor as 8-bit floats."""
    return (value.float() * factor).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def geglu_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    weight_scale: torch.Tensor,
    input_scale: torch.Tensor,
    output_factor: torch.Tensor,
) -> torch.Tensor:
    """Return values * gelu(gates) * `output_factor`, (m, n) in 8-bit floats.

    `x` (m, k) and `weight` (2n, k) are 8-bit floats; the product's first n columns are values, the others gates.
    """
    values, gates = (x.float() @ weight.float().t() * (weight_scale * input_scale) + bias.float()).chunk(2, dim=-1)
    return rounded(values * F.gelu(gates), output_factor)


geglu = torch.library.custom_op("parallel_sdxl::fp8_geglu", geglu_reference, mutates_args=())
"""`geglu_reference`, or what does the same as fast as can be."""


@geglu.register_kernel("cuda")
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    weight_scale: torch.Tensor,
    input_scale: torch.Tensor,
    output_factor: torch.Tensor,
) -> torch.Tensor:
    from serve_app.replica.kernels.geglu import geglu

    return geglu(x, weight, bias, (weight_scale, input_scale, output_factor))


@geglu.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    weight_scale: torch.Tensor,
    input_scale: torch.Tensor,
    output_factor: torch.Tensor,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // 2)


def conv_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    weight_scale: torch.Tensor,
    input_scale: torch.Tensor,
) -> torch.Tensor:
    """Return a 3x3 convolution with a margin of 1, (rows, height, width, n) in the type of `bias`.

    `x` (rows, height, width, channels) and `weight` (n, 9 * channels: pixel by pixel) are 8-bit floats.
    """
    kernel = weight.to(bias.dtype).unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
    sums = F.conv2d(x.to(bias.dtype).permute(0, 3, 1, 2), kernel, padding=1).permute(0, 2, 3, 1)
    return (sums.float() * (weight_scale * input_scale) + bias.float()).to(bias.dtype).contiguous()


conv = torch.library.custom_op("parallel_sdxl::fp8_conv", conv_reference, mutates_args=())
"""`conv_reference`, or what does the same as fast as can be."""


@conv.register_kernel("cuda")
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    weight_scale: torch.Tensor,
    input_scale: torch.Tensor,
) -> torch.Tensor:
    from serve_app.replica.kernels.conv import conv

    return conv(x, weight, bias, (weight_scale, input_scale))


@conv.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    weight_scale: torch.Tensor,
    input_scale: torch.Tensor,
) -> torch.Tensor:
    return x.new_empty(*x.shape[:3], weight.shape[0], dtype=bias.dtype)
