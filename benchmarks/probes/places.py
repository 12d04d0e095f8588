"""Which settings give an image the same bits at any place of a batch, and how fast they are."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.conditions import Conditions
from benchmarks.probes.unet import Call, inputs, milliseconds, unet_call
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.loading import load

_IMAGES = 4


@dataclass(frozen=True)
class Setting:
    name: str
    compiler: Mapping[str, Any] | None = None
    """The compiler's options. None: eager."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """cuDNN's flags."""

    def active(self) -> AbstractContextManager[object]:
        flags: Callable[..., AbstractContextManager[object]] = torch.backends.cudnn.flags
        return flags(enabled=True, allow_tf32=True, **self.flags) if self.flags else nullcontext()


_MM = {"conv_1x1_as_mm": True}
AS_IT_IS = (
    Setting("eager"),
    Setting("eager, cudnn.deterministic", flags={"deterministic": True, "benchmark": False}),
    Setting("eager, cudnn.benchmark", flags={"deterministic": False, "benchmark": True}),
    Setting("eager, both", flags={"deterministic": True, "benchmark": True}),
)
COMPILED = (
    Setting("compiled", _MM),
    Setting("compiled, cudnn.benchmark", _MM, {"deterministic": False, "benchmark": True}),
    Setting("compiled, coordinate descent", {**_MM, "coordinate_descent_tuning": True}),
    Setting(
        "compiled, autotuned products", {**_MM, "max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN,TRITON"}
    ),
    Setting(
        "compiled, Triton's convolutions",
        {**_MM, "max_autotune_conv_backends": "TRITON", "max_autotune": True, "max_autotune_gemm_backends": "ATEN"},
    ),
    Setting("compiled, cudnn.deterministic", _MM, {"deterministic": True, "benchmark": False}),
)


def probe(conditions: Conditions) -> Iterator[str]:
    return _probe(conditions, AS_IT_IS)


def probe_compiled(conditions: Conditions) -> Iterator[str]:
    return _probe(conditions, COMPILED)


def _probe(conditions: Conditions, settings: Sequence[Setting]) -> Iterator[str]:
    checkpoint = load(conditions.args())
    size = conditions.workload.size
    with torch.inference_mode():
        one, four = (inputs(checkpoint, 2 * images, size, size) for images in (1, _IMAGES))
        for setting in settings:
            torch._dynamo.reset()
            started = time.perf_counter()
            try:
                with setting.active():
                    call = _call(checkpoint, setting)
                    alone = milliseconds(call, one)
                    yield (
                        f"{setting.name}: {_answer(call, four)}, {alone:.1f} ms for one image, "
                        f"{time.perf_counter() - started:.0f} s in all"
                    )
            except Exception as error:
                yield f"{setting.name}: {type(error).__name__}: {str(error).splitlines()[0][:160]}"


def _call(checkpoint: Checkpoint, setting: Setting) -> Call:
    call = unet_call(checkpoint)
    return (
        call
        if setting.compiler is None
        else torch.compile(call, fullgraph=True, dynamic=False, options=dict(setting.compiler))
    )


def _answer(call: Call, given: tuple[torch.Tensor, ...]) -> str:
    """Call twice with the same inputs, then move the first image to every place of the batch and compare its rows."""
    first = call(*given)
    again = torch.equal(first, call(*given))
    worst, equal = 0.0, 0
    for place in range(1, _IMAGES):
        order = torch.arange(2 * _IMAGES, device=given[0].device).roll(2 * place)
        moved = call(*(_ordered(part, order) for part in given))[2 * place : 2 * place + 2]
        equal += torch.equal(moved, first[:2])
        worst = max(worst, float((moved.float() - first[:2].float()).abs().max() / first[:2].float().std()))
    places = f"equal at {equal} of {_IMAGES - 1} other places, largest difference {worst:.1e} of the deviation"
    return f"repeatable {again}; {places}; {milliseconds(call, given):.1f} ms"


def _ordered(part: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    layout = (
        torch.channels_last
        if part.dim() == 4 and part.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
    return part[order].contiguous(memory_format=layout)
