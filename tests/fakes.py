"""A pool without replicas, for the fan-out and the routes above it."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Self, get_args

import numpy as np

from serve_app import metrics
from serve_app.adapters import Version
from serve_app.canvas import Canvas
from serve_app.config import ONLY_MODEL, AppArgs
from serve_app.errors import ServiceError
from serve_app.fanout.admission import Admission
from serve_app.fanout.deployed import Deployed
from serve_app.fanout.dispatch import Dispatcher
from serve_app.fanout.models import Models
from serve_app.fanout.order import Ticket
from serve_app.fanout.peers import Peers
from serve_app.fanout.placement import Placement
from serve_app.fanout.pool import Pool, Tell, nobody
from serve_app.fanout.sight import PoolStatus
from serve_app.fanout.starts import Readiness, Starts
from serve_app.messages import Generated, Kept, Paused, Preview, Progress, ReplicaStatus, Slot, SlotEvent, Work
from serve_app.readings import Part, Reading
from serve_app.recipe import Changes, Embedding, Lora, SchedulerName
from serve_app.schemas import BatchResult, Event, GenerateRequest, ModelInfo

SCHEDULERS: tuple[SchedulerName, ...] = get_args(SchedulerName)
GPU_SECONDS = 0.5
SKETCH_SECONDS = 0.25
MODEL = ModelInfo(name="fake", revision=None, hash="0123456789")
REPLICA = ReplicaStatus(
    id="abc",
    model=MODEL,
    scheduler="euler",
    schedulers=SCHEDULERS,
    has_previews=True,
    capacity=4,
    active=0,
    waiting=0,
    finished=0,
    scorers=("sharpness",),
)


@dataclass
class Answer:
    """A replica's answer to a broadcast, as a Serve result and as the ObjectRef it holds.

    It may be an error, and come later or never.
    """

    actor: str = "actor"
    value: Any = REPLICA
    after: asyncio.Event | None = None

    async def to_object_ref_async(self) -> "Answer":
        return self

    def task_id(self) -> "Answer":
        return self

    def actor_id(self) -> "Answer":
        return self

    def hex(self) -> str:
        return self.actor

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        if self.after is not None:
            yield from self.after.wait().__await__()
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


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
        Work(0, 0, 0, 0, gpu=GPU_SECONDS),
        MODEL,
        Ref(pixels),
    )


def sketch(slot: Slot) -> Paused:
    """What a slot has become by the step where it is to pause."""
    step = slot.pause_after or 0
    return Paused(Preview(step, 8, 8, "sketch"), Kept(step, MODEL.hash, b"state"), Work(0, 0, 0, 0, gpu=SKETCH_SECONDS))


async def nothing_special(slot: Slot) -> None: ...


@dataclass
class FakePool(Pool):
    """Generates immediately. `before` runs in each slot's call and may wait or raise; `open` are the running slots,
    `warnings` what each picture comes with.

    `models` are those that generate some slots, by index, instead of the one in `status`.
    """

    before: Callable[[Slot], Awaitable[None]] = nothing_special
    status: PoolStatus = field(
        default_factory=lambda: PoolStatus((REPLICA, replace(REPLICA, id="def")), images_per_second=1.0)
    )
    warnings: tuple[str, ...] = ()
    open: set[int] = field(default_factory=set)
    slots: list[Slot] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    models: dict[int, ModelInfo] = field(default_factory=dict)
    scores: Mapping[int, float | None] = field(default_factory=dict)
    """What sketches are worth, by index."""

    name: str = ""
    deployed: Deployed = field(default_factory=Deployed)
    starts: Starts = field(default_factory=lambda: Starts(may_sleep=False))

    @property
    def model(self) -> ModelInfo:
        return self.any_replica.model

    @property
    def deployment(self) -> str:
        return self.name

    @property
    def known_model(self) -> ModelInfo | None:
        return self.status.replicas[0].model if self.status.replicas else None

    @property
    def readiness(self) -> Readiness:
        self.starts.look(bool(self.status.replicas), self.deployed.asleep)
        return self.starts.readiness

    async def keep_polling(self, tell: Tell = nobody, waiting: Callable[[], int] = int) -> None: ...

    async def generate(self, slot: Slot, replica: str = "abc", deadline: float = math.inf) -> AsyncGenerator[SlotEvent]:
        self.open.add(slot.index)
        self.slots.append(slot)
        self.deadlines.append(deadline)
        try:
            await self.before(slot)
            yield replace(generated(slot), warnings=self.warnings, model=self.models.get(slot.index, MODEL))
        finally:
            self.open.discard(slot.index)

    async def stream(self, slot: Slot, replica: str = "abc", deadline: float = math.inf) -> AsyncGenerator[SlotEvent]:
        yield Progress(1)
        if slot.pause_after is not None:
            await self.before(slot)
            yield replace(sketch(slot), score=self.scores.get(slot.index) if slot.score_by else None)
            return
        for step in sorted(slot.preview_steps):
            yield Preview(step, 8, 8, "preview")
        async for event in self.generate(slot, replica, deadline):
            yield event

    async def share(self, canvas: Canvas) -> Canvas:
        return canvas

    async def check_adapters(self, loras: Sequence[Lora], embeddings: Sequence[Embedding]) -> dict[Version, str]:
        """All fit, and what they are is for others to find out."""
        return {}

    async def pixels(self, ref: Any) -> Any:
        return None if ref is None else ref.value


def tickets(n: int, client: str = "someone", generation: str = "some") -> list[Ticket]:
    return [Ticket(client, generation, index) for index in range(n)]


def dispatcher_of(admission: Admission, *replicas: ReplicaStatus) -> Dispatcher:
    """A dispatcher over replicas that stay as they are, by default one with room for all."""
    return Dispatcher(admission, lambda: replicas or (replace(REPLICA, capacity=100),), Placement())


class NoPeers(Peers):
    """The only ingress replica."""

    async def cancel(self, id: str, index: int | None) -> list[int]:
        return []

    async def resume_images(
        self, id: str, images: Collection[int] | None, changes: Changes
    ) -> list[int] | ServiceError | None:
        return None

    async def next_part(self, id: str, after: int, wait_s: float) -> Part | None:
        return None

    async def has_left(self) -> bool:
        return False

    async def deployed(self, replicas: Iterable[str]) -> Mapping[str, Deployed]:
        return {}


class OneModel(Models):
    """A service of one model over a pool, and its fan-out in one."""

    def __init__(self, pool: Pool, args: AppArgs, metrics: metrics.Metrics, peers: Peers | None = None) -> None:
        super().__init__({ONLY_MODEL: pool}, peers or NoPeers(), args, metrics)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of(ONLY_MODEL), name)

    async def generate(self, request: GenerateRequest, canvas: Canvas | None = None) -> BatchResult:
        return await self.of(ONLY_MODEL).generate(request, canvas)

    def stream(
        self, request: GenerateRequest, canvas: Canvas | None = None
    ) -> AbstractAsyncContextManager[AsyncGenerator[Event]]:
        return self.of(ONLY_MODEL).stream(request, canvas)

    def open(self, request: GenerateRequest, canvas: Canvas | None = None) -> AbstractAsyncContextManager[Reading]:
        return self.of(ONLY_MODEL).open(request, canvas)

    async def drain(self, grace_s: float) -> None:
        await self.generations.drain(grace_s)


class Metrics(metrics.Metrics):
    """Keeps what an ingress would count: additions and observations in order, and gauges."""

    def __init__(self) -> None:
        self.added: list[tuple[metrics.Metric, float, dict[str, str]]] = []
        self.observed: list[tuple[metrics.Metric, float]] = []
        self.observed_labels: list[tuple[metrics.Metric, dict[str, str]]] = []
        self.gauges: dict[metrics.Metric, float] = {}
        self.most_waiting = 0.0

    def labelled(self, **labels: str) -> Self:
        """Return itself: there is one model."""
        return self

    def add(self, metric: metrics.Metric, amount: float = 1, **labels: str) -> None:
        if amount:
            self.added.append((metric, amount, labels))

    def observe(self, metric: metrics.Metric, value: float, **labels: str) -> None:
        self.observed.append((metric, value))
        self.observed_labels.append((metric, labels))

    def set(self, metric: metrics.Metric, value: float, **labels: str) -> None:
        self.gauges[metric] = value
        if metric is metrics.QUEUED:
            self.most_waiting = max(self.most_waiting, value)

    def count(self, metric: metrics.Metric, **labels: str) -> float:
        """Return what has been added with these labels."""
        return sum(amount for one, amount, its in self.added if one is metric and labels.items() <= its.items())

    @property
    def now_waiting(self) -> float:
        return self.gauges[metrics.QUEUED]

    @property
    def outcomes(self) -> list[str]:
        """The outcome of each image."""
        ends = [(labels["outcome"], amount) for metric, amount, labels in self.added if metric is metrics.IMAGES]
        return [outcome for outcome, amount in ends for _ in range(int(amount))]

    @property
    def first_previews(self) -> list[float]:
        return [value for metric, value in self.observed if metric is metrics.FIRST_PREVIEW_SECONDS]
