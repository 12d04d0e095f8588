"""Kernels in Gluon, Triton's language for one kind of GPU: here Hopper.

All are products of 8-bit or 16-bit floats whose tiles come in turns to a fixed number of blocks. In each block one
warp copies (TMA) while eight multiply (WGMMA), several stages apart. They follow each other by two barriers a stage:
`full` says that a stage has been copied, `empty` that it has been used.
"""

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

WARPS = 8
STEP_BYTES = 128
"""How much of a row is copied and multiplied at once."""

sync = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier  # renamed in Triton 3.8


@gluon.jit
def place(tile, tiles_m, tiles_n):
    """Return a tile's row and column. Eight rows go together, so that what they read stays in the cache."""
    width = 8 * tiles_n
    first = tile // width * 8
    rows = gl.minimum(tiles_m - first, 8)
    return first + tile % width % rows, tile % width // rows


def duration(x: torch.Tensor, tiles: int, columns: int) -> float:
    """Return about how long a product takes, in no unit: turns of all blocks, times that of a tile of 128 rows.

    A tile takes what its multiplications take, or what reading its rows and columns takes.
    """
    turns = -(-tiles // torch.cuda.get_device_properties(x.device).multi_processor_count)
    return turns * max(columns, 9 / 16 * (128 + columns))


def blocks(x: torch.Tensor, tiles: int) -> int:
    return min(torch.cuda.get_device_properties(x.device).multi_processor_count, tiles)


def described(tensor: torch.Tensor, block: list[int]) -> TensorDescriptor:
    width = tensor.element_size()
    layout = gl.NVMMASharedLayout(min(STEP_BYTES, block[-1] * width), 8 * width, len(block))
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block, layout)


@gluon.constexpr_function
def rows_of_warps(bm, bn, bits, warps):
    """Return a layout of tiles to store, in which each warp keeps the rows that it has multiplied.

    Of a product, every four threads have two columns in eight of their rows; here each has 16 bytes in a row, and only
    these four pass values on to each other.
    """
    columns = [[0, 1 << i] for i in range(bn.bit_length() - 1)]
    rows = [[1 << i, 0] for i in range(bm.bit_length() - 1)]
    own = (128 // bits).bit_length() - 1
    across = 4 + warps.bit_length() - 1  # a warp has 16 rows, and more after those of all others
    return gl.DistributedLinearLayout(
        reg_bases=[*columns[:own], rows[3], *columns[own + 2 :], *rows[across:]],
        lane_bases=[*columns[own : own + 2], *rows[:3]],
        warp_bases=rows[4:across],
        block_bases=[],
        shape=[bm, bn],
    )
