"""Peer: fal.distributed's `DistributedRunner`. All GPUs work on one request at a time."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from benchmarks.conditions import Conditions
from benchmarks.measures import rounds
from benchmarks.ports import free_port


@dataclass(frozen=True)
class Previewed:
    """When a stream's first preview and its end arrived, in seconds after the request."""

    first_preview: float
    total: float


class Fal:
    """A started runner. One call generates an image on each device."""

    def __init__(self, runner: Any, conditions: Conditions, loop: asyncio.AbstractEventLoop, started_s: float) -> None:
        self.conditions = conditions
        self.started_s = started_s
        self._runner = runner
        self._loop = loop
        self._numbers = count(1)

    def call(self) -> float:
        """Return the seconds of one call."""
        started = time.perf_counter()
        self._loop.run_until_complete(self._invoke())
        return time.perf_counter() - started

    def stream(self) -> Previewed:
        """Return when the first preview and the end of one call arrived."""
        return self._loop.run_until_complete(self._stream())

    def load(self, clients: int, seconds: float) -> list[float]:
        """Let clients call for `seconds`, each at least twice; return when each image arrived, in order."""
        return self._loop.run_until_complete(self._load(clients, seconds))

    async def _invoke(self) -> None:
        answer = await self._runner.invoke(self._payload())
        if "image" not in answer:
            raise RuntimeError(f"no image: {answer}")

    async def _stream(self) -> Previewed:
        started = time.perf_counter()
        times = []
        async for event in self._runner.stream(self._payload(), as_text_events=True):
            if b'"image"' not in event:
                raise RuntimeError(f"no image: {event[:500]!r}")
            times.append(time.perf_counter() - started)
        return Previewed(times[0], times[-1])

    async def _load(self, clients: int, seconds: float) -> list[float]:
        finished: list[float] = []

        async def client() -> None:
            for _ in rounds(seconds, least=2):
                await self._invoke()
                finished.extend([time.perf_counter()] * len(self.conditions.devices))

        await asyncio.gather(*(client() for _ in range(clients)))
        return finished

    def _payload(self) -> dict[str, Any]:
        work = self.conditions.workload
        return {
            "prompt": f"{work.prompt}, {next(self._numbers)}",
            "negative_prompt": "blurry, low quality",
            "num_inference_steps": work.steps,
            "width": work.size,
            "height": work.size,
        }


@contextmanager
def open_fal(conditions: Conditions) -> Iterator[Fal]:
    # Imported here, so that without fal only this subject fails; before torch, so that it does so at once.
    import fal.distributed  # noqa: F401

    from benchmarks.peers.fal_worker import ParallelWorker, Runner

    loop = asyncio.new_event_loop()
    runner = Runner(worker_cls=ParallelWorker, world_size=len(conditions.devices), master_port=free_port())
    started = time.perf_counter()
    work = conditions.workload
    settings = {
        "checkpoint": str(conditions.checkpoint),
        "preview_every": work.preview_every,
        "guidance": work.guidance,
    }
    loop.run_until_complete(runner.start(timeout=300, **settings))
    try:
        peer = Fal(runner, conditions, loop, time.perf_counter() - started)
        peer.call()
        yield peer
    finally:
        loop.run_until_complete(runner.stop())
        loop.close()
