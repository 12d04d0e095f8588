"""Products with gated columns, in 8-bit or 16-bit floats."""

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

_ROWS = 128
_STAGES = {128: 4, 64: 6}
"""As many as fit, by the columns of a tile."""


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
            mbarrier.expect(bar, (bm + 2 * bn) * bk * (x.dtype.primitive_bitwidth // 8))
            tma.async_copy_global_to_shared(x, [row * bm, k * bk], bar, x_s.index(s))
            tma.async_copy_global_to_shared(w, [column * bn, k * bk], bar, v_s.index(s))
            tma.async_copy_global_to_shared(w, [n + column * bn, k * bk], bar, g_s.index(s))
            it += 1


@gluon.jit
def _gelu(x):
    """Return the exact GELU up to 3e-5, and where it is above 0.003 up to 2e-4 of it, less than bfloat16 rounds.

    The logarithm of the normal distribution's odds is nearly a polynomial of five terms. The error function takes twice
    as many instructions, which is a tenth of the whole product's time.
    """
    square = x * x
    odds = (
        (((1.4969326e-06 * square - 4.2603362e-05) * square - 7.4238516e-04) * square + 0.10636882) * square
    ) + 2.3011284
    return x * _inverse(1.0 + gl.exp2(-x * odds))


@gluon.jit
def _inverse(x):
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


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
    scaled: gl.constexpr,
    warps: gl.constexpr,
):
    at_once: gl.constexpr = 256 // x_s.dtype.primitive_bitwidth
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], instr_shape=[16, bn, at_once])
    out: gl.constexpr = rows_of_warps(bm, bn, y.dtype.element_ty.primitive_bitwidth, warps)
    if scaled:
        scale = gl.load(w_scale) * gl.load(x_scale)
        output_factor = gl.load(factor)
    it = 0
    for tile in range(gl.program_id(0), tiles_m * tiles_n, programs):
        row, column = place(tile, tiles_m, tiles_n)
        own = column * bn + gl.arange(0, bn, layout=gl.SliceLayout(0, sums))
        value_bias = gl.load(bias + own)  # now, so that nothing waits for them later
        gate_bias = gl.load(bias + n + own)
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
        if scaled:
            values = values * scale
            gates = gates * scale
        result = (values + value_bias.to(gl.float32)[None, :]) * _gelu(gates + gate_bias.to(gl.float32)[None, :])
        if scaled:
            result = gl.minimum(gl.maximum(result * output_factor, -448.0), 448.0)
        # Rounded first, there is less to pass on between threads.
        result = gl.convert_layout(result.to(y.dtype.element_ty), out)
        rows = row * bm + gl.arange(0, bm, layout=gl.SliceLayout(1, out))
        columns = column * bn + gl.arange(0, bn, layout=gl.SliceLayout(0, out))
        offsets = rows.to(gl.int64)[:, None] * n + columns[None, :]
        gl.store(y + offsets, result, mask=(rows < m)[:, None] & (columns < n)[None, :])


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
    scaled: gl.constexpr = w_scale is not None
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
                    scaled,
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
    scales: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None] = (None, None, None),
    columns: int | None = None,
) -> torch.Tensor:
    """See `fp8.geglu`, whose scales these are, and without any `half.geglu`. A tile's columns do not change a bit.

    The weight must have a multiple of 256 rows; a row must have a multiple of 128 bytes.
    """
    m, n = len(x), len(weight) // 2
    y = torch.empty(m, n, device=x.device, dtype=x.dtype)
    deep = STEP_BYTES // x.element_size()
    tiles_m = -(-m // _ROWS)
    columns = columns or min(_STAGES, key=lambda width: duration(x, tiles_m * n // width, 2 * width))
    tiles_n = n // columns
    programs = blocks(x, tiles_m * tiles_n)
    _geglu[(programs,)](
        described(x, [_ROWS, deep]),
        described(weight, [columns, deep]),
        y,
        bias,
        *scales,
        m,
        n,
        tiles_m,
        tiles_n,
        programs,
        x.shape[1] // deep,
        bm=_ROWS,
        bn=columns,
        bk=deep,
        stages=_STAGES[columns],
        num_warps=WARPS,
    )
    return y
