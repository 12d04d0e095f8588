"""Whether a picture depends on its replica, on the crowd, or on a replica's failure: over HTTP, on all GPUs.

Requests of four images each, one for each scheduler of the model, with mixed sizes, guidance and steps. Their images
are first generated one by one; then all at once, undisturbed and with one replica failing in the middle.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

import psutil
import torch

from benchmarks.conditions import Conditions, Workload
from benchmarks.faulty import FAULTS, Fault, inject
from benchmarks.probes.seeds import Differ, digest
from benchmarks.processes import replica_pids
from benchmarks.service import Service, open_service
from serve_app.recipe import SchedulerName

_IMAGES = 4
_GUIDANCE = (5.0, 0.0, 7.5)
_CPU_DEVICES = 2
_RECOVERY_S = 180.0

Fail = Callable[[int], None]
"""Makes the process of a replica fail."""


def probe(conditions: Conditions) -> Iterator[str]:
    """Yield how many pictures are equal to those generated alone, round by round. Raises Differ."""
    devices = tuple(range(_CPU_DEVICES if conditions.cpu else torch.cuda.device_count()))
    bodies = list(_bodies(conditions.workload))
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FAULTS] = folder  # for the replicas' processes
        faults: Mapping[str, Fail] = {
            "one runs out of memory": lambda pid: inject(Path(folder), pid, Fault.OUT_OF_MEMORY),
            "one is frozen": partial(_signal, signal.SIGSTOP),
            "one hangs in a step": lambda pid: inject(Path(folder), pid, Fault.HANG),
            "one is killed": partial(_signal, signal.SIGKILL),
        }
        with open_service(conditions.model_copy(update={"devices": devices}), "benchmarks.faulty:build") as service:
            started = time.perf_counter()
            alone = [
                _generate(service, body, number, index)
                for number, body in enumerate(bodies)
                for index in range(_IMAGES)
            ]
            yield f"{len(alone)} images one after the other, {len(devices)} replicas: {_seconds(started):.1f} s"
            undisturbed, line = _round(service, bodies, alone, None, 0)
            yield f"all at once: {line}"
            for name, fail in faults.items():
                seconds, line = _round(service, bodies, alone, fail, undisturbed / 3)
                late = seconds - undisturbed
                lost = len(devices) * late  # idle, or generating once more
                yield f"{name}: {line}, {late:.1f} s later than undisturbed: {lost:.1f} GPU seconds lost"
                _recover(service)


def _round(
    service: Service, bodies: Sequence[Mapping[str, Any]], alone: Sequence[str], fail: Fail | None, after_s: float
) -> tuple[float, str]:
    """Return how long all requests took together, and how many pictures are equal. Raises Differ."""
    started = time.perf_counter()
    with ThreadPoolExecutor(len(bodies)) as clients:
        asked = [clients.submit(_generate_all, service, body, number) for number, body in enumerate(bodies)]
        if fail is not None:
            time.sleep(after_s)
            fail(replica_pids(service.pid)[0])
        pictures = [picture for answer in asked for picture in answer.result()]
    seconds = _seconds(started)
    differing = [place for place, pair in enumerate(zip(alone, pictures, strict=True)) if len(set(pair)) > 1]
    if differing:
        raise Differ(f"{len(differing)} of {len(alone)} images differ, the first: {bodies[differing[0] // _IMAGES]}")
    return seconds, f"{len(pictures)} of {len(alone)} arrived, equal bit for bit, in {seconds:.1f} s"


def _recover(service: Service) -> None:
    """Let a frozen replica go on, and wait until all are ready."""
    for pid in replica_pids(service.pid):
        _signal(signal.SIGCONT, pid)
    deadline = time.perf_counter() + _RECOVERY_S
    while service.ready() != len(service.conditions.devices):
        if time.perf_counter() > deadline:
            raise RuntimeError("the failed replica did not come back")
        time.sleep(0.2)


def _signal(number: signal.Signals, pid: int) -> None:
    if psutil.pid_exists(pid):
        os.kill(pid, number)


def _bodies(work: Workload) -> Iterator[dict[str, Any]]:
    """Yield settings: every scheduler but those of EDM's models, with different sizes, guidance and steps."""
    wide = work.size * 9 // 8
    sizes = cycle([(work.size, work.size), (work.small_size, work.small_size), (work.size, wide), (wide, work.size)])
    steps = cycle([work.steps, work.few_steps, 2 * work.few_steps])
    schedulers = (name for name in get_args(SchedulerName) if not name.startswith("edm_"))
    for scheduler, guidance, (width, height), count in zip(schedulers, cycle(_GUIDANCE), sizes, steps, strict=False):
        yield {
            "prompt": "a red apple",
            "output_format": "png",
            "width": width,
            "height": height,
            "num_inference_steps": count,
            "guidance_scale": guidance,
            "scheduler": scheduler,
        }


def _generate(service: Service, body: Mapping[str, Any], number: int, index: int) -> str:
    (picture,) = service.pictures(1, seed=_IMAGES * number + index, **body)
    return digest(picture)


def _generate_all(service: Service, body: Mapping[str, Any], number: int) -> list[str]:
    return [digest(picture) for picture in service.pictures(_IMAGES, seed=_IMAGES * number, **body)]


def _seconds(since: float) -> float:
    return time.perf_counter() - since
