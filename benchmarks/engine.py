"""The engine in-process, set up as in a replica, without Ray and HTTP."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from queue import Empty, Queue

import numpy as np
import torch
from torch._C._autograd import DeviceType

from benchmarks.conditions import Conditions
from benchmarks.idle import idle_fraction
from benchmarks.measures import rates, timed
from serve_app.canvas import Canvas, Layer
from serve_app.messages import Generated, Slot, SlotEvent
from serve_app.replica.engine import Engine
from serve_app.replica.loading import load
from serve_app.replica.observer import Silent
from serve_app.replica.submission import SlotJob

_PATIENCE_S = 10
"""After this long without an event, check whether the engine is still alive."""


class EngineBench:
    """One checkpoint, and one engine at a time: the one last prepared."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self._args = conditions.args()
        self._checkpoint = load(self._args)
        self._engine: Engine | None = None
        self._setting = (0, 0)
        self._seed = 0

    def close(self) -> None:
        if self._engine:
            self._engine.stop()
            self._engine = None

    def prepare(self, at_once: int, slot: Slot, images_per_call: int | None = None) -> None:
        """Start an engine that generates `at_once` such slots at once, warmed up as in a replica, and use it once.

        By default all slots share one UNet call.
        """
        setting = at_once, images_per_call or at_once
        if self._engine and self._setting == setting:
            return
        self.close()
        config = self._args.engine.model_copy(
            update=dict(zip(("max_batch_size", "images_per_call"), setting, strict=True))
        )
        engine = Engine(self._checkpoint, config, self._args.preview, Silent())
        try:
            engine.start([slot]).result()
        except BaseException:
            engine.stop()
            raise
        self._engine, self._setting = engine, setting
        self.generate([self._fresh(slot) for _ in range(at_once)])

    def image(self, slot: Slot) -> float:
        """Return the seconds from submitting a slot to its file, with a prompt that is not cached."""
        return self.generate([self._fresh(slot)])

    def edit(self, slot: Slot, strength: float) -> tuple[float, float]:
        """Return the seconds of an image that goes on from a picture, and of encoding such a picture; both are new."""
        assert self._engine is not None
        encoder = self._engine._models.encoder
        recipe = slot.recipe.model_copy(update={"init_image": "a picture", "strength": strength})
        size = slot.recipe.height, slot.recipe.width
        image = self.image(replace(slot, recipe=recipe, canvas=Canvas(self._picture(size))))
        picture = self._picture(size)
        return image, timed(lambda: encoder.picture(picture).mean.cpu())

    def generate(self, slots: Sequence[Slot]) -> float:
        """Generate slots that are submitted together; return the seconds until the last file is done."""
        assert self._engine is not None
        events: Queue[SlotEvent | Exception] = Queue()
        started = time.perf_counter()
        for slot in slots:
            self._engine.submit(slot, events.put)
        for _ in slots:
            _generated(self._engine, events)
        return time.perf_counter() - started

    def rates(self, slot: Slot, seconds: float) -> list[float]:
        """Return images per second while there is always another slot waiting."""
        return rates(self._keep_busy(slot, seconds), warm_up=2 * self._images, window=self._window)

    def idle(self, slot: Slot, seconds: float) -> float:
        """Return the percentage of time under load that the GPU was idle between launches.

        A CUDA graph is one launch: gaps between its kernels do not count; profiling makes them larger.
        """
        if self._checkpoint.device.type != "cuda":
            raise RuntimeError("needs a GPU")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
            self._keep_busy(slot, seconds)
        launches: dict[int, tuple[float, float]] = {}
        for event in profile.events():
            if event.device_type == DeviceType.CUDA:
                start, end = launches.get(event.id, (event.time_range.start, event.time_range.end))
                launches[event.id] = min(start, event.time_range.start), max(end, event.time_range.end)
        return 100 * idle_fraction(list(launches.values()))

    @property
    def _images(self) -> int:
        return self._setting[0]

    @property
    def _window(self) -> int:
        return max(2, self._images)

    def _keep_busy(self, slot: Slot, seconds: float) -> list[float]:
        """Keep twice as many slots in the engine as it generates at once; return when each finished."""
        assert self._engine is not None
        events: Queue[SlotEvent | Exception] = Queue()
        finished: list[float] = []
        least, end = 2 * self._images + 2 * self._window + 1, time.perf_counter() + seconds
        jobs: list[SlotJob] = []
        while len(finished) < least or time.perf_counter() < end:
            while len(jobs) - len(finished) < 2 * self._images:
                jobs.append(self._engine.submit(self._fresh(slot), events.put))
            _generated(self._engine, events)
            finished.append(time.perf_counter())
        for job in jobs:
            self._engine.cancel(job)
        while self._engine.load().active:
            self._engine.check()
            time.sleep(0.01)
        return finished

    def _picture(self, size: tuple[int, int]) -> Layer:
        """Return a picture of this height and width that there has not been before."""
        self._seed += 1
        return Layer.of(np.random.default_rng(self._seed).integers(256, size=(*size, 3), dtype=np.uint8))

    def _fresh(self, slot: Slot) -> Slot:
        """Return the slot with the next seed and a new prompt, so that nothing comes from a cache."""
        self._seed += 1
        recipe = slot.recipe.model_copy(update={"prompt": f"{slot.recipe.prompt}, {self._seed}"})
        return replace(slot, seed=self._seed, recipe=recipe)


@contextmanager
def open_engine(conditions: Conditions) -> Iterator[EngineBench]:
    bench = EngineBench(conditions)
    try:
        yield bench
    finally:
        bench.close()


def _generated(engine: Engine, events: "Queue[SlotEvent | Exception]") -> Generated:
    while True:
        try:
            event = events.get(timeout=_PATIENCE_S)
        except Empty:
            engine.check()
            continue
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Generated):
            return event
