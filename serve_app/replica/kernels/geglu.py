"""Products with gated columns, in 8-bit floats."""

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

from serve_app.replica.kernels.tiles import WARPS, blocks, described, place, sync

_ROWS, _COLUMNS, _DEEP = 128, 128, 128
_STAGES = 4


@gluon.jit
def _copy(
    x,
    w,
    x_s,
    v_s,
    g_s,
    full,
    empty,
    tiles_m,
    tiles_n,
    programs,
    steps,
    n,
    bm: gl.constexpr,
    bn: gl.constexpr,
    bk: gl.constexpr,
    stages: gl.constexpr,
):
    it = 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, programs):
        row, column = place(tile, tiles_m, tiles_n)
        for k in range(steps):
            s = it % stages
            mbarrier.wait(empty.index(s), ((it // stages) & 1) ^ 1)
            bar = full.index(s)
            mbarrier.expect(bar, (bm + 2 * bn) * bk)
            tma.async_copy_global_to_shared(x, [row * bm, k * bk], bar, x_s.index(s))
            tma.async_copy_global_to_shared(w, [column * bn, k * bk], bar, v_s.index(s))
            tma.async_copy_global_to_shared(w, [n + column * bn, k * bk], bar, g_s.index(s))
            it += 1


@gluon.jit
def _multiply(
    x_s,
    v_s,
    g_s,
    full,
    empty,
    y,
    bias,
    w_scale,
    x_scale,
    factor,
    tiles_m,
    tiles_n,
    programs,
    steps,
    m,
    n,
    bm: gl.constexpr,
    bn: gl.constexpr,
    stages: gl.constexpr,
    warps: gl.constexpr,
):
    sums: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[warps, 1], instr_shape=[16, bn, 32])
    out: gl.constexpr = gl.BlockedLayout([1, 8], [256 // bn, bn // 8], [warps, 1], [1, 0])
    scale = gl.load(w_scale) * gl.load(x_scale)
    output_factor = gl.load(factor)
    it = 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, programs):
        row, column = place(tile, tiles_m, tiles_n)
        values = gl.zeros([bm, bn], gl.float32, sums)
        gates = gl.zeros([bm, bn], gl.float32, sums)
        for k in range(steps):
            s = it % stages
            mbarrier.wait(full.index(s), (it // stages) & 1)
            x = x_s.index(s)
            values = warpgroup_mma(x, v_s.index(s).permute((1, 0)), values, is_async=True)
            gates = warpgroup_mma(x, g_s.index(s).permute((1, 0)), gates, is_async=True)
            values, gates = warpgroup_mma_wait(num_outstanding=2, deps=(values, gates))
            if k > 0:
                sync()
                mbarrier.arrive(empty.index((it + stages - 1) % stages), count=1)
            it += 1
        values, gates = warpgroup_mma_wait(num_outstanding=0, deps=(values, gates))
        sync()
        mbarrier.arrive(empty.index((it + stages - 1) % stages), count=1)
        own = column * bn + gl.arange(0, bn, layout=gl.SliceLayout(0, sums))
        values = values * scale + gl.load(bias + own).to(gl.float32)[None, :]
        gates = gates * scale + gl.load(bias + n + own).to(gl.float32)[None, :]
        # GELU by tanh: 8-bit floats do not tell it from the exact one.
        bent = 1.5957691216057308 * (gates + 0.044715 * gates * gates * gates)
        result = gl.convert_layout(values * gates / (1.0 + gl.exp(-bent)), out)
        result = gl.minimum(gl.maximum(result * output_factor, -448.0), 448.0)
        rows = row * bm + gl.arange(0, bm, layout=gl.SliceLayout(1, out))
        columns = column * bn + gl.arange(0, bn, layout=gl.SliceLayout(0, out))
        offsets = rows.to(gl.int64)[:, None] * n + columns[None, :]
        gl.store(y + offsets, result.to(y.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


@gluon.jit
def _geglu(
    x,
    w,
    y,
    bias,
    w_scale,
    x_scale,
    factor,
    m,
    n,
    tiles_m,
    tiles_n,
    programs,
    steps,
    bm: gl.constexpr,
    bn: gl.constexpr,
    bk: gl.constexpr,
    stages: gl.constexpr,
    num_warps: gl.constexpr,
):
    x_s = gl.allocate_shared_memory(x.dtype, [stages, bm, bk], x.layout)
    v_s = gl.allocate_shared_memory(x.dtype, [stages, bn, bk], w.layout)
    g_s = gl.allocate_shared_memory(x.dtype, [stages, bn, bk], w.layout)
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
                    v_s,
                    g_s,
                    full,
                    empty,
                    y,
                    bias,
                    w_scale,
                    x_scale,
                    factor,
                    tiles_m,
                    tiles_n,
                    programs,
                    steps,
                    m,
                    n,
                    bm,
                    bn,
                    stages,
                    num_warps,
                ),
            ),
            (_copy, (x, w, x_s, v_s, g_s, full, empty, tiles_m, tiles_n, programs, steps, n, bm, bn, bk, stages)),
        ],
        [1],
        [40],
    )


def geglu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    weight_scale: torch.Tensor,
    input_scale: torch.Tensor,
    output_factor: torch.Tensor,
) -> torch.Tensor:
    """See `fp8.geglu`. The weight's rows and columns must be multiples of 256 and 128."""
    m, n = len(x), len(weight) // 2
    y = torch.empty(m, n, device=x.device, dtype=x.dtype)
    tiles_m, tiles_n = -(-m // _ROWS), n // _COLUMNS
    programs = blocks(x, tiles_m * tiles_n)
    _geglu[(programs,)](
        described(x, [_ROWS, _DEEP]),
        described(weight, [_COLUMNS, _DEEP]),
        y,
        bias,
        weight_scale,
        input_scale,
        output_factor,
        m,
        n,
        tiles_m,
        tiles_n,
        programs,
        x.shape[1] // _DEEP,
        bm=_ROWS,
        bn=_COLUMNS,
        bk=_DEEP,
        stages=_STAGES,
        num_warps=WARPS,
    )
    return y
