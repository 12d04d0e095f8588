"""Generations of slots that a script generates."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

from serve_app.fanout.admission import Admission
from serve_app.fanout.generation import Generation
from serve_app.fanout.tries import Again
from serve_app.messages import Generated, Preview, Progress, ReplicaStatus, Slot, SlotEvent, Work
from serve_app.schemas import Event
from tests.conftest import make_slot
from tests.fakes import MODEL, dispatcher_of

GENERATED = Generated(64, 64, "image/png", "cGljdHVyZQ==", Work(0.1, 0.2, 0.3, 0.4), MODEL, pixels="ref")
Script = Callable[[Slot], AsyncGenerator[SlotEvent]]


def slots(n: int, **changes: object) -> list[Slot]:
    return [make_slot(index=i, seed=50 + i, **changes) for i in range(n)]


def generation_of(
    n: int,
    admission: Admission | None = None,
    capacity: int = 100,
    retries: list[Again] | None = None,
    replicas: Sequence[ReplicaStatus] = (),
    saved: list[int] | None = None,
    **changes: object,
) -> Generation:
    """`retries` collects why slots are generated again, `saved` the steps that are not; `changes` are of the slots."""
    retried: list[Again] = [] if retries is None else retries
    steps: list[int] = [] if saved is None else saved

    def again(reason: Again, saved: int) -> None:
        retried.append(reason)
        steps.append(saved)

    admission = admission or Admission(100, lambda: capacity)
    turn = dispatcher_of(admission, *replicas).turn
    return Generation(slots(n, **changes), MODEL, admission, turn, time.monotonic(), again)


@asynccontextmanager
async def followed(
    generation: Generation, generate: Script, seconds: float = 30
) -> AsyncIterator[AsyncGenerator[Event]]:
    events = generation.events(time.monotonic() + seconds)
    with generation.admitted():
        async with generation.generating(lambda slot, _: generate(slot)), aclosing(events):
            yield events


async def events_of(generation: Generation, generate: Script, seconds: float = 30) -> list[Event]:
    async with followed(generation, generate, seconds) as events:
        return [event async for event in events]


async def picture(slot: Slot) -> AsyncGenerator[SlotEvent]:
    yield Progress(1)
    yield Preview(1, 8, 8, "cHJldmlldw==")
    yield GENERATED
