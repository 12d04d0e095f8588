"""3x3 convolutions in 8-bit or 16-bit floats: products of which each step takes the pixels from another place."""

import math
from dataclasses import dataclass

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from serve_app.replica.kernels.tiles import STEP_BYTES, WARPS, blocks, described, duration, place, rows_of_warps, sync

_PIXELS = 128
_SHAPES = tuple((_PIXELS // width, width) for width in (128, 64, 32, 16, 8))
"""Heights and widths of a tile."""


@gluon.jit
def _copy(
    x,
    w,
    w2,
    x_s,
    a_s,
    b_s,
    full,
    empty,
    tiles_m,
    tiles_n,
    programs,
    steps,
    deep,
    tiles_w,
    tiles_hw,
    bh: gl.constexpr,
    bw: gl.constexpr,
    bn: gl.constexpr,
    bn2: gl.constexpr,
    bk: gl.constexpr,
    stages: gl.constexpr,
):
    it = 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, programs):
        row, column = place(tile, tiles_m, tiles_n)
        within = row % tiles_hw
        for k in range(steps):
            s = it % stages
            mbarrier.wait(empty.index(s), ((it // stages) & 1) ^ 1)
            bar = full.index(s)
            mbarrier.expect(bar, (bh * bw + bn + bn2) * bk * (x.dtype.primitive_bitwidth // 8))
            tap = k // deep
            # What lies outside of the picture is read as zeros.
            top = within // tiles_w * bh + tap // 3 - 1
            left = within % tiles_w * bw + tap % 3 - 1
            tma.async_copy_global_to_shared(x, [row // tiles_hw, top, left, (k % deep) * bk], bar, x_s.index(s))
            tma.async_copy_global_to_shared(w, [column * (bn + bn2), k * bk], bar, a_s.index(s))
            if bn2 > 0:
                tma.async_copy_global_to_shared(w2, [column * (bn + bn2) + bn, k * bk], bar, b_s.index(s))
            it += 1


@gluon.jit
def _store(
    sums,
    y,
    bias,
    scale,
    first,
    row,
    n,
    height,
    width,
    tiles_w,
    tiles_hw,
    bh: gl.constexpr,
    bw: gl.constexpr,
    bn: gl.constexpr,
    warps: gl.constexpr,
):
    out: gl.constexpr = rows_of_warps(bh * bw, bn, y.dtype.element_ty.primitive_bitwidth, warps)
    within = row % tiles_hw
    i = gl.arange(0, bh * bw, layout=gl.SliceLayout(1, out))
    down = within // tiles_w * bh + i // bw
    right = within % tiles_w * bw + i % bw
    pixels = (row // tiles_hw) * (height * width) + down * width + right
    columns = first + gl.arange(0, bn, layout=gl.SliceLayout(0, out))
    own = first + gl.arange(0, bn, layout=gl.SliceLayout(0, sums.type.layout))
    result = sums * scale + gl.load(bias + own, mask=own < n, other=0.0).to(gl.float32)[None, :]
    result = gl.convert_layout(result.to(y.dtype.element_ty), out)
    offsets = pixels.to(gl.int64)[:, None] * n + columns[None, :]
    inside = (down < height) & (right < width)
    gl.store(y + offsets, result, mask=inside[:, None] & (columns < n)[None, :])


@gluon.jit
def _multiply(
    x_s,
    a_s,
    b_s,
    full,
    empty,
    y,
    bias,
    w_scale,
    x_scale,
    tiles_m,
    tiles_n,
    programs,
    steps,
    n,
    height,
    width,
    tiles_w,
    tiles_hw,
    bh: gl.constexpr,
    bw: gl.constexpr,
    bn: gl.constexpr,
    bn2: gl.constexpr,
    bk: gl.constexpr,
    stages: gl.constexpr,
    scaled: gl.constexpr,
    warps: gl.constexpr,
):
    at_once: gl.constexpr = 256 // x_s.dtype.primitive_bitwidth
    wide: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], instr_shape=[16, bn, at_once])
    if bn2 > 0:
        slim: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], instr_shape=[16, bn2, at_once])
    scale = gl.load(w_scale) * gl.load(x_scale) if scaled else 1.0
    it = 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, programs):
        row, column = place(tile, tiles_m, tiles_n)
        first = gl.zeros([bh * bw, bn], gl.float32, wide)
        if bn2 > 0:
            second = gl.zeros([bh * bw, bn2], gl.float32, slim)
        for k in range(steps):
            s = it % stages
            mbarrier.wait(full.index(s), (it // stages) & 1)
            x = x_s.index(s).reshape([bh * bw, bk])
            first = warpgroup_mma(x, a_s.index(s).permute((1, 0)), first, is_async=True)
            if bn2 > 0:
                second = warpgroup_mma(x, b_s.index(s).permute((1, 0)), second, is_async=True)
                first, second = warpgroup_mma_wait(num_outstanding=2, deps=(first, second))
            else:
                first = warpgroup_mma_wait(num_outstanding=1, deps=(first,))
            if k > 0:
                sync()
                mbarrier.arrive(empty.index((it + stages - 1) % stages), count=1)
            it += 1
        if bn2 > 0:
            first, second = warpgroup_mma_wait(num_outstanding=0, deps=(first, second))
        else:
            first = warpgroup_mma_wait(num_outstanding=0, deps=(first,))
        sync()
        mbarrier.arrive(empty.index((it + stages - 1) % stages), count=1)
        start = column * (bn + bn2)
        _store(first, y, bias, scale, start, row, n, height, width, tiles_w, tiles_hw, bh, bw, bn, warps)
        if bn2 > 0:
            _store(second, y, bias, scale, start + bn, row, n, height, width, tiles_w, tiles_hw, bh, bw, bn2, warps)


@gluon.jit
def _conv(
    x,
    w,
    w2,
    y,
    bias,
    w_scale,
    x_scale,
    n,
    height,
    width,
    tiles_m,
    tiles_n,
    programs,
    steps,
    deep,
    tiles_w,
    tiles_hw,
    bh: gl.constexpr,
    bw: gl.constexpr,
    bn: gl.constexpr,
    bn2: gl.constexpr,
    bk: gl.constexpr,
    stages: gl.constexpr,
    num_warps: gl.constexpr,
):
    x_s = gl.allocate_shared_memory(x.dtype, [stages, 1, bh, bw, bk], x.layout)
    a_s = gl.allocate_shared_memory(x.dtype, [stages, bn, bk], w.layout)
    b_s = gl.allocate_shared_memory(x.dtype, [stages, bn2, bk], w2.layout) if bn2 > 0 else a_s
    full = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [stages, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(stages):
        mbarrier.init(full.index(s), count=1)
        mbarrier.init(empty.index(s), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _multiply,
                (
                    x_s,
                    a_s,
                    b_s,
                    full,
                    empty,
                    y,
                    bias,
                    w_scale,
                    x_scale,
                    tiles_m,
                    tiles_n,
                    programs,
                    steps,
                    n,
                    height,
                    width,
                    tiles_w,
                    tiles_hw,
                    bh,
                    bw,
                    bn,
                    bn2,
                    bk,
                    stages,
                    w_scale is not None,
                    num_warps,
                ),
            ),
            (
                _copy,
                (
                    x,
                    w,
                    w2,
                    x_s,
                    a_s,
                    b_s,
                    full,
                    empty,
                    tiles_m,
                    tiles_n,
                    programs,
                    steps,
                    deep,
                    tiles_w,
                    tiles_hw,
                    bh,
                    bw,
                    bn,
                    bn2,
                    bk,
                    stages,
                ),
            ),
        ],
        [1],
        [40],
    )


def _tile(height: int, width: int) -> tuple[int, int]:
    """Return the height and width of the tiles of which the fewest cover a picture."""
    return min(_SHAPES, key=lambda shape: -(-height // shape[0]) * -(-width // shape[1]))


@dataclass(frozen=True)
class Columns:
    """How many columns a tile has, as a power of 2 and another or none; and stages, as many as fit."""

    first: int
    second: int
    stages: int

    @property
    def all(self) -> int:
        return self.first + self.second


CHOICES = (
    Columns(256, 0, 4),
    Columns(128, 64, 5),
    Columns(128, 32, 6),
    Columns(128, 0, 6),
    Columns(64, 32, 7),
    Columns(64, 0, 8),
    Columns(32, 0, 8),
)
"""Of those that take as long, the first is chosen."""


def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    scales: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    columns: Columns | None = None,
) -> torch.Tensor:
    """See `fp8.conv`, whose scales these are, and without any `half.conv`. A tile's columns do not change a bit.

    There must be a multiple of 64 channels.
    """
    rows, height, width, channels = x.shape
    n = len(weight)
    y = torch.empty(rows, height, width, n, device=x.device, dtype=bias.dtype)
    (bh, bw), bk = _tile(height, width), math.gcd(channels, STEP_BYTES // x.element_size())
    tiles_w = -(-width // bw)
    tiles_hw = tiles_w * -(-height // bh)
    tiles_m = rows * tiles_hw
    columns = columns or min(CHOICES, key=lambda choice: duration(x, tiles_m * -(-n // choice.all), choice.all))
    tiles_n = -(-n // columns.all)
    programs = blocks(x, tiles_m * tiles_n)
    _conv[(programs,)](
        described(x, [1, bh, bw, bk]),
        described(weight, [columns.first, bk]),
        described(weight, [columns.second or columns.first, bk]),
        y,
        bias,
        *scales,
        n,
        height,
        width,
        tiles_m,
        tiles_n,
        programs,
        9 * channels // bk,
        channels // bk,
        tiles_w,
        tiles_hw,
        bh=bh,
        bw=bw,
        bn=columns.first,
        bn2=columns.second,
        bk=bk,
        stages=columns.stages,
        num_warps=WARPS,
    )
    return y
