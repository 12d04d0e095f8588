"""Whether an image changes with the replica, with concurrent requests, or when a replica dies. Runs over HTTP."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice, product
from typing import Any, get_args

import torch

from benchmarks.conditions import Conditions, Workload
from benchmarks.probes.seeds import Differ, digest
from benchmarks.processes import replica_pids
from benchmarks.service import Service, open_service
from serve_app.recipe import SchedulerName

_IMAGES = 32
_GUIDANCE = (5.0, 0.0, 7.5)
_CPU_DEVICES = 2


def probe(conditions: Conditions) -> Iterator[str]:
    """Yield how many pictures equal those generated one by one. Raises Differ."""
    devices = tuple(range(_CPU_DEVICES if conditions.cpu else torch.cuda.device_count()))
    bodies = list(islice(cycle(_bodies(conditions.workload)), _IMAGES))
    with open_service(conditions.model_copy(update={"devices": devices})) as service:
        started = time.perf_counter()
        alone = _one_by_one(service, bodies)
        seconds = time.perf_counter() - started
        yield f"{len(alone)} pictures generated one after the other by {len(devices)} replicas: {seconds:.1f} s"
        rounds: Mapping[str, float | None] = {
            "once more": None,
            "all at once": None,
            "all at once, a replica killed": seconds / len(devices) / 3,
        }
        for name, kill_after_s in rounds.items():
            pictures = _one_by_one(service, bodies) if name == "once more" else _together(service, bodies, kill_after_s)
            differing = [bodies[i] for i, pair in enumerate(zip(alone, pictures, strict=True)) if len(set(pair)) > 1]
            yield f"{name}: {_IMAGES - len(differing)} of {_IMAGES} equal bit for bit"
            if differing:
                raise Differ(f"{name}, other pixels for {differing[0]} and {len(differing) - 1} more")


def _bodies(work: Workload) -> Iterator[dict[str, Any]]:
    """Yield settings, all schedulers twice with different sizes, guidance and steps."""
    wide = work.size * 9 // 8
    sizes = cycle([(work.size, work.size), (work.small_size, work.small_size), (work.size, wide), (wide, work.size)])
    steps = cycle([work.steps, work.few_steps, 2 * work.few_steps])
    for (guidance, scheduler), (width, height), count in zip(
        product(_GUIDANCE, get_args(SchedulerName)), sizes, steps, strict=False
    ):
        yield {
            "width": width,
            "height": height,
            "num_inference_steps": count,
            "guidance_scale": guidance,
            "scheduler": scheduler,
        }


def _generated(service: Service, body: Mapping[str, Any], seed: int) -> str:
    return digest(service.picture(seed=seed, prompt="a red apple", output_format="png", **body))


def _one_by_one(service: Service, bodies: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_generated(service, body, seed) for seed, body in enumerate(bodies)]


def _together(service: Service, bodies: Sequence[Mapping[str, Any]], kill_after_s: float | None) -> list[str]:
    with ThreadPoolExecutor(len(bodies)) as clients:
        asked = [clients.submit(_generated, service, body, seed) for seed, body in enumerate(bodies)]
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(replica_pids(service.pid)[0], signal.SIGKILL)
        return [picture.result() for picture in asked]
