"""One compiled model for all sizes, or one per size: time to compile and to run."""

import time
from collections.abc import Iterator

import torch

from benchmarks.conditions import Conditions
from benchmarks.probes.unet import Call, compiled_call, inputs, milliseconds, unet_call
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.loading import load


def probe(conditions: Conditions) -> Iterator[str]:
    checkpoint = load(conditions.args())
    sizes = _sizes(conditions.workload.size)
    with torch.inference_mode():
        for name, any_size in (("a model for each size", False), ("one model for all sizes", True)):
            torch._dynamo.reset()
            call = compiled_call(checkpoint, any_size)
            for rows in (2, 8):
                for height, width in sizes:
                    yield f"{name}: {_try(checkpoint, call, rows, height, width)}"
        eager = unet_call(checkpoint)
        for height, width in sizes:
            yield (
                f"eager: rows 2, {width}x{height}: {milliseconds(eager, inputs(checkpoint, 2, height, width)):.1f} ms"
            )


def _sizes(side: int) -> list[tuple[int, int]]:
    """Return a square, a landscape (1344x768 for 1024) and a square of half the side, in multiples of 32."""
    return [(side, side), (side * 3 // 4 // 32 * 32, side * 21 // 16 // 32 * 32), (side // 2, side // 2)]


def _try(checkpoint: Checkpoint, call: Call, rows: int, height: int, width: int) -> str:
    given = inputs(checkpoint, rows, height, width)
    started = time.perf_counter()
    try:
        call(*given)
        if given[0].is_cuda:
            torch.cuda.synchronize()
    except Exception as error:
        return f"rows {rows}, {width}x{height}: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
    first = time.perf_counter() - started
    return f"rows {rows}, {width}x{height}: first call {first:.1f} s, then {milliseconds(call, given):.1f} ms"
