"""A pool without replicas, for the fan-out and the routes above it."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from serve_app.fanout.peers import Peers
from serve_app.fanout.pool import Pool, PoolStatus
from serve_app.messages import Generated, Preview, Progress, ReplicaStatus, Slot, SlotEvent, Work
from serve_app.metrics import IngressMetrics
from serve_app.readings import Part
from serve_app.recipe import SchedulerName
from serve_app.schemas import ModelInfo

SCHEDULERS: tuple[SchedulerName, ...] = get_args(SchedulerName)
REPLICA = ReplicaStatus(
    id="abc",
    model=ModelInfo(name="fake", revision=None, hash="0123456789"),
    scheduler="euler",
    schedulers=SCHEDULERS,
    has_previews=True,
    prompt_tokens=75,
    capacity=4,
    active=0,
    waiting=0,
    finished=0,
)


@dataclass(frozen=True)
class Ref:
    """Stands in for an ObjectRef."""

    value: Any


def generated(slot: Slot) -> Generated:
    """A picture in one colour: the slot's index."""
    pixels = np.full((slot.recipe.height, slot.recipe.width, 3), slot.index, dtype=np.uint8)
    return Generated(
        slot.recipe.width,
        slot.recipe.height,
        f"image/{slot.output.output_format}",
        f"picture{slot.seed}",
        Work(0, 0, 0, 0),
        Ref(pixels),
    )


async def nothing_special(slot: Slot) -> None: ...


@dataclass
class FakePool(Pool):
    """Generates immediately. `before` runs in each slot's call and may wait or raise; `open` are the running slots."""

    before: Callable[[Slot], Awaitable[None]] = nothing_special
    status: PoolStatus = field(default_factory=lambda: PoolStatus((REPLICA, REPLICA), images_per_second=1.0))
    unseen: str = ""
    open: set[int] = field(default_factory=set)
    slots: list[Slot] = field(default_factory=list)

    async def keep_polling(self) -> None: ...

    async def generate(self, slot: Slot) -> AsyncGenerator[SlotEvent]:
        self.open.add(slot.index)
        self.slots.append(slot)
        try:
            await self.before(slot)
            yield generated(slot)
        finally:
            self.open.discard(slot.index)

    async def watch(self, slot: Slot) -> AsyncGenerator[SlotEvent]:
        yield Progress(1)
        for step in sorted(slot.preview_steps):
            yield Preview(step, 8, 8, "preview")
        async for event in self.generate(slot):
            yield event

    async def pixels(self, ref: Any) -> Any:
        return None if ref is None else ref.value

    async def cut_off(self, prompt: str) -> str:
        return self.unseen if prompt else ""


class NoPeers(Peers):
    """The only ingress replica."""

    async def cancel(self, id: str, index: int | None) -> list[int]:
        return []

    async def next_part(self, id: str, after: int, wait_s: float) -> Part | None:
        return None


class Metrics(IngressMetrics):
    """Counts what an ingress would."""

    def __init__(self) -> None:
        self.first_previews: list[float] = []
        self.retries = 0
        self.outcomes: list[str] = []
        self.most_waiting = 0

    def first_preview(self, seconds: float) -> None:
        self.first_previews.append(seconds)

    def ended(self, outcome: str) -> None:
        self.outcomes.append(outcome)

    def waiting(self, images: int) -> None:
        self.most_waiting = max(self.most_waiting, images)

    def retried(self) -> None:
        self.retries += 1
