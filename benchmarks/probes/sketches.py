"""What sixteen sketches cost of which three are finished, compared with sixteen pictures: over HTTP, on all GPUs.

The three go on as soon as all are sketched, and the others are cancelled; the time that a person takes costs nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.conditions import Conditions
from benchmarks.service import Service, open_service

_IMAGES, _FINISHED = 16, 3
_STEPS, _SKETCH = 20, 6
_ROUNDS = 3
_CPU_DEVICES = 2


@dataclass(frozen=True, slots=True)
class _Run:
    """Seconds: until the first picture is on the screen and until the end, by the clock, and of the device."""

    first: float
    total: float
    gpu: float


def probe(conditions: Conditions) -> Iterator[str]:
    devices = tuple(range(_CPU_DEVICES if conditions.cpu else torch.cuda.device_count()))
    work = conditions.workload.model_copy(update={"size": conditions.args().model.width, "steps": _STEPS})
    with open_service(conditions.model_copy(update={"devices": devices, "workload": work})) as service:
        _sketched(service)
        rounds = [(_whole(service), _sketched(service)) for _ in range(_ROUNDS)]
    for name, runs in zip(("whole", "sketched"), zip(*rounds, strict=True), strict=True):
        yield (
            f"{name}: {_of(runs, 'gpu')} s of the device, {_of(runs, 'total')} s in all, the first after "
            f"{_of(runs, 'first')} s ({len(devices)} replicas, median of {_ROUNDS})"
        )
    by_steps = (_IMAGES * _SKETCH + _FINISHED * (_STEPS - _SKETCH)) / (_IMAGES * _STEPS)
    gpu, total = (median(getattr(b, of) / getattr(a, of) for a, b in rounds) for of in ("gpu", "total"))
    yield (
        f"{_IMAGES} sketches of {_SKETCH} of {_STEPS} steps of which {_FINISHED} are finished cost {gpu:.3f} of "
        f"{_IMAGES} whole pictures in device time, {total:.3f} in time ({by_steps:.3f} of the steps)"
    )


def _of(runs: tuple[_Run, ...], of: str) -> str:
    return f"{median(getattr(run, of) for run in runs):.3f}"


def _whole(service: Service) -> _Run:
    events = list(service.events(_IMAGES))
    first = next(at for at, event in events if event["type"] == "image")
    return _Run(first, events[-1][0], events[-1][1]["timings"]["gpu"])


def _sketched(service: Service) -> _Run:
    """Sketch all, finish the first ones, and cancel the others."""
    id_, sketches = "", list[float]()
    for at, event in service.events(_IMAGES, pause_after=_SKETCH):
        id_ = str(event["id"]) if event["type"] == "start" else id_
        if event["type"] == "paused":
            sketches.append(at)
            if len(sketches) == _IMAGES:
                service.finish(id_, range(_FINISHED), range(_FINISHED, _IMAGES))
        if event["type"] == "completed":
            return _Run(sketches[0], at, event["timings"]["gpu"])
    raise RuntimeError("the sketches came to no end")
