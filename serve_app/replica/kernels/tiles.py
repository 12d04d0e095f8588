"""Kernels in Gluon, Triton's language for one kind of GPU: here Hopper.

All are products of 8-bit floats whose tiles come in turns to a fixed number of blocks. In each block one warp copies
(TMA) while eight multiply (WGMMA), several stages apart. They follow each other by two barriers a stage: `full` says
that a stage has been copied, `empty` that it has been used.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

WARPS = 8

sync = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # renamed in Triton 3.8


@gluon.jit
def place(tile, tiles_m, tiles_n):
    """Return a tile's row and column. Eight rows go together, so that what they read stays in the cache."""
    width = 8 * tiles_n
    first = tile // width * 8
    rows = gl.minimum(tiles_m - first, 8)
    return first + tile % width % rows, tile % width // rows


def blocks(x: torch.Tensor, tiles: int) -> int:
    return min(torch.cuda.get_device_properties(x.device).multi_processor_count, tiles)


def described(tensor: torch.Tensor, block: list[int]) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout(min(128, block[-1]), 8, len(block))
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block, layout)
