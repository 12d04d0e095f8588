"""States and their transitions, and that a generation keeps to them whatever happens in whatever order."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import NotPaused, ReplicaLost, SlotFailed, SlotReturned
from serve_app.fanout.admission import Admission
from serve_app.fanout.generation import Generation
from serve_app.fanout.sketches import Pauses
from serve_app.fanout.states import GenerationState, SlotState
from serve_app.messages import Generated, Preview, Progress, Slot, SlotEvent, Work
from serve_app.schemas import Event, NoPicture, Picture, QueuedEvent
from serve_app.states import IllegalTransition
from tests.conftest import make_slot
from tests.fakes import MODEL, dispatcher_of, sketch

ENDS = {SlotState.SUCCEEDED, SlotState.FAILED, SlotState.CANCELLED}
LEGAL_FOR_SLOTS = {
    *((SlotState.QUEUED, end) for end in (SlotState.RUNNING, SlotState.PAUSED, *ENDS)),
    *((SlotState.RUNNING, end) for end in (SlotState.QUEUED, SlotState.PAUSED, *ENDS)),
    *((SlotState.PAUSED, end) for end in (SlotState.QUEUED, SlotState.FAILED, SlotState.CANCELLED)),
}
LEGAL_FOR_GENERATIONS = {
    (GenerationState.ADMITTED, GenerationState.RUNNING),
    (GenerationState.ADMITTED, GenerationState.ENDED),
    (GenerationState.RUNNING, GenerationState.ENDED),
}


@pytest.mark.parametrize(("state", "following"), list(product(SlotState, SlotState)))
def test_transitions_of_a_slot(state: SlotState, following: SlotState) -> None:
    if (state, following) in LEGAL_FOR_SLOTS:
        assert state.to(following) is following
    else:
        with pytest.raises(IllegalTransition, match=f"SlotState: what is {state.value} cannot become"):
            state.to(following)


@pytest.mark.parametrize(("state", "following"), list(product(GenerationState, GenerationState)))
def test_transitions_of_a_generation(state: GenerationState, following: GenerationState) -> None:
    if (state, following) in LEGAL_FOR_GENERATIONS:
        assert state.to(following) is following
    else:
        with pytest.raises(IllegalTransition, match=f"GenerationState: what is {state.value} cannot become"):
            state.to(following)


def test_states_of_different_kinds_do_not_follow_each_other() -> None:
    with pytest.raises(IllegalTransition):
        SlotState.QUEUED.to(GenerationState.RUNNING)  # type: ignore[arg-type]  # the checker sees it too


def test_what_has_ended() -> None:
    assert {state for state in SlotState if state.ended} == ENDS
    assert {state for state in GenerationState if state.ended} == {GenerationState.ENDED}


def test_the_last_states_of_a_slot_are_what_the_api_calls_them() -> None:
    statuses = {s for image in (Picture, NoPicture) for s in get_args(image.model_fields["status"].annotation)}
    assert {state.value for state in ENDS} == statuses
    assert SlotState.QUEUED.value == QueuedEvent(index=0, position=1).type


async def test_a_generation_runs_once() -> None:
    admission = Admission(1, lambda: 1)
    generation = Generation(
        [make_slot()], MODEL, admission, dispatcher_of(admission).turn, time.monotonic(), lambda *_: None
    )
    with generation.admitted():
        async with generation.generating(Replicas(1).generate):
            pass
        with pytest.raises(IllegalTransition):
            async with generation.generating(Replicas(1).generate):
                pass
    assert generation.state is GenerationState.ENDED


STATE_TOLD_BY = {
    "queued": SlotState.QUEUED,
    "progress": SlotState.RUNNING,
    "preview": SlotState.RUNNING,
    "paused": SlotState.PAUSED,
    "resumed": SlotState.QUEUED,
    "image": SlotState.SUCCEEDED,
    "failed": SlotState.FAILED,
    "cancelled": SlotState.CANCELLED,
}

SAYINGS: tuple[SlotEvent | BaseException, ...] = (
    Progress(1),
    Preview(1, 8, 8, "cHJldmlldw=="),
    Generated(64, 64, "image/png", "cGljdHVyZQ==", Work(0, 0, 0, 0), MODEL),
    SlotFailed("out_of_memory", "no room"),
    SlotReturned(),
    ReplicaLost(),
    ZeroDivisionError(),
    sketch(make_slot(pause_after=2)),
)


@dataclass(frozen=True)
class Say:
    """A replica says something of a slot, or its call raises."""

    index: int
    saying: int


@dataclass(frozen=True)
class Cancel:
    index: int | None


@dataclass(frozen=True)
class Resume:
    """Ask for what is paused to go on, whether anything is or not."""

    index: int | None


@dataclass(frozen=True)
class Look:
    """The client takes what there is to tell from here on, or from here on it does not."""

    looks: bool


class Pass:
    """The event loop runs until nothing more happens by itself."""


Step = Say | Cancel | Resume | Look | Pass


class Replicas:
    """Say of each slot what they are told to; a call that is cancelled stops listening."""

    def __init__(self, slots: int) -> None:
        self.sayings: list[asyncio.Queue[SlotEvent | BaseException]] = [asyncio.Queue() for _ in range(slots)]

    async def generate(self, slot: Slot, replica: str) -> AsyncGenerator[SlotEvent]:
        while True:
            saying = await self.sayings[slot.index].get()
            if isinstance(saying, BaseException):
                raise saying
            yield saying


@dataclass
class Client:
    """Collects the events while it looks."""

    generation: Generation
    events: list[Event] = field(default_factory=list)
    looking: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self, deadline: float) -> None:
        async for event in self.generation.events(deadline):
            self.events.append(event)
            told = self.generation.slot_states[event.index]  # type: ignore[union-attr]  # it tells of slots alone
            assert told is STATE_TOLD_BY[event.type]
            await self.looking.wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def play(generation: Generation, replicas: Replicas, client: Client, steps: list[Step]) -> None:
    for step in steps:
        match step:
            case Say(index, saying):
                replicas.sayings[index].put_nowait(SAYINGS[saying])
            case Cancel(index):
                generation.cancel(index)
            case Resume(index):
                with suppress(NotPaused):
                    generation.resume(None if index is None else [index])
            case Look(looks):
                client.looking.set() if looks else client.looking.clear()
            case Pass():
                await settle()


async def finish(how: str, replicas: Replicas, client: Client, listener: asyncio.Task[None], best: int | None) -> None:
    """Let every slot end by a picture, by the deadline, or because the client has left."""
    client.looking.set()
    if how == "pictures":
        await settle()
        if best is None:
            with suppress(NotPaused):
                client.generation.resume(None)
        for sayings in replicas.sayings:
            sayings.put_nowait(SAYINGS[2])
            sayings.put_nowait(SAYINGS[2])  # where the first call was lost with the first
        await asyncio.wait_for(listener, 5)
        return
    listener.cancel()
    with suppress(asyncio.CancelledError):
        await listener
    if how == "deadline":
        await client.listen(deadline=0)


def check(generation: Generation, client: Client, slots: int, finished: bool) -> None:
    told: dict[int, list[Any]] = defaultdict(list)
    for event in client.events:
        told[event.index].append(event)  # type: ignore[union-attr]  # a generation tells of slots alone
    for index in range(slots):
        kinds = [event.type for event in told[index]]
        at = [place for place, kind in enumerate(kinds) if STATE_TOLD_BY[kind].ended]
        assert len(at) <= 1, "a slot ends once"
        assert len(at) == 1 or not finished, "a slot ends"
        assert at in ([], [len(kinds) - 1]), "nothing is told after the end"
        if at:
            assert generation.slot_states[index] is STATE_TOLD_BY[kinds[-1]]
        begun = next((place for place, kind in enumerate(kinds) if kind in ("progress", "preview")), len(kinds))
        assert "queued" not in kinds[begun:] or "resumed" in kinds
    assert all(generation.slot_states[index] is SlotState.CANCELLED for index in generation.cancelled)
    assert generation.state is GenerationState.ENDED
    assert sorted(generation.images) == list(range(slots))
    outcomes = Counter(state for state in generation.slot_states)
    assert sum(outcomes[end] for end in ENDS) == outcomes.total() == slots


@st.composite
def stories(draw: st.DrawFn) -> tuple[int, int, list[Step]]:
    slots = draw(st.integers(1, 4))
    index = st.integers(0, slots - 1)
    step: st.SearchStrategy[Step] = st.one_of(
        st.builds(Say, index, st.integers(0, len(SAYINGS) - 1)),
        st.builds(Cancel, st.none() | index),
        st.builds(Resume, st.none() | index),
        st.builds(Look, st.booleans()),
        st.builds(Pass),
    )
    return slots, draw(st.integers(0, slots)), draw(st.lists(step, max_size=25))


@settings(max_examples=300, deadline=None)
@given(
    story=stories(),
    early=st.integers(0, 3),
    how=st.sampled_from(["pictures", "deadline", "leave"]),
    best=st.none() | st.integers(1, 3),
)
def test_whatever_happens_each_slot_ends_once(
    story: tuple[int, int, list[Step]], early: int, how: str, best: int | None
) -> None:
    """`early` steps happen before generating begins; of the sketches the `best` go on by themselves."""
    slots, capacity, steps = story

    async def run() -> None:
        admission, replicas = Admission(100, lambda: capacity), Replicas(slots)
        turn = dispatcher_of(admission).turn
        made = [make_slot(index=i, seed=i, pause_after=best and 2) for i in range(slots)]
        generation = Generation(made, MODEL, admission, turn, 0, lambda *_: None, pauses=Pauses(0.02, best))
        client = Client(generation)
        with generation.admitted():
            await play(generation, replicas, client, steps[:early])
            async with generation.generating(replicas.generate):
                listener = asyncio.create_task(client.listen(time.monotonic() + 60))
                await play(generation, replicas, client, steps[early:])
                await finish(how, replicas, client, listener, best)
        check(generation, client, slots, finished=how != "leave")
        assert admission.unfinished == 0

        ended = generation.images, generation.slot_states, generation.cancelled
        generation.cancel(None)
        async for event in generation.events(deadline=0):
            raise AssertionError(event)
        assert (generation.images, generation.slot_states, generation.cancelled) == ended, "what has ended stays so"

    asyncio.run(run())
