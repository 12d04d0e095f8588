"""A slot whose replica is lost, returns it or has no memory for it is generated again, but not for ever."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from serve_app.errors import ReplicaLost, SlotFailed, SlotReturned
from serve_app.fanout.admission import Admission
from serve_app.fanout.generation import Generation
from serve_app.fanout.tries import Again
from serve_app.messages import Kept, Progress, Slot, SlotEvent
from serve_app.recipe import Lora
from serve_app.schemas import Event, FailedEvent, ImageEvent, ProgressEvent, QueuedEvent
from tests.conftest import make_slot
from tests.fakes import MODEL, REPLICA, dispatcher_of
from tests.fanout.generations import GENERATED, events_of, followed, generation_of, slots


async def test_a_slot_whose_replica_is_lost_is_generated_once_more(caplog: pytest.LogCaptureFixture) -> None:
    tries: list[Slot] = []
    retries: list[Again] = []

    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        tries.append(slot)
        yield Progress(1)
        if len(tries) == 1:
            raise ReplicaLost
        yield GENERATED

    generation = generation_of(1, retries=retries)
    events = await events_of(generation, generate)
    assert isinstance(events[-1], ImageEvent)
    assert tries == [make_slot(seed=50)] * 2, "the very same slot: seed and all"
    assert retries == ["lost"]
    assert "image 0 (seed 50) of generation none is generated again: replica abc: lost" in caplog.text


async def test_a_slot_goes_on_from_what_its_lost_replica_kept_last(caplog: pytest.LogCaptureFixture) -> None:
    tries: list[Slot] = []
    kept = [Kept(step, "model", bytes(step)) for step in (2, 3)]
    saved: list[int] = []

    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        tries.append(slot)
        if len(tries) == 1:
            for state in kept:
                yield state
            raise ReplicaLost
        if len(tries) == 2:
            raise SlotReturned
        yield GENERATED

    generation = generation_of(1, saved=saved)
    events = await events_of(generation, generate)
    told = [type(event) for event in events if not isinstance(event, QueuedEvent)]
    assert told == [ImageEvent], "clients hear of no kept step"
    assert [slot.kept for slot in tries] == [None, kept[1], kept[1]]
    assert saved == [3, 0], "each step counts once, and what was only given back had none"
    assert "lost; it goes on after step 3 of 4, which saves 0.0 s" in caplog.text
    ((slot, _, _),) = generation.ends()
    assert slot.kept is None, "what has ended keeps nothing in memory"


@pytest.mark.parametrize(
    ("why", "failures", "end"),
    [
        ("out_of_memory", 1, ImageEvent),
        ("out_of_memory", 2, FailedEvent),
        ("adapter_gone", 1, ImageEvent),
        ("adapter_gone", 7, ImageEvent),
        ("adapter_gone", 8, FailedEvent),
    ],
)
async def test_a_slot_that_found_no_memory_or_not_its_adapters_is_tried_elsewhere(
    monkeypatch: pytest.MonkeyPatch, why: str, failures: int, end: type[Event]
) -> None:
    tried: list[str] = []

    async def generate(_: Slot, replica: str) -> AsyncGenerator[SlotEvent]:
        tried.append(replica)
        if len(tried) <= failures:
            raise SlotFailed(why, "no")
        yield GENERATED

    monkeypatch.setattr("serve_app.fanout.attempts._BETWEEN_TRIES_S", 0)
    generation = generation_of(1, replicas=[replace(REPLICA, id=id_, capacity=1) for id_ in "ab"])
    with generation.admitted():
        async with generation.generating(generate):
            events = [event async for event in generation.events(time.monotonic() + 30)]
    assert isinstance(events[-1], end)
    assert sorted(tried[:2]) == ["a", "b"]


async def test_a_slot_whose_adapters_are_gone_goes_to_whoever_has_read_them_however_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many there are that have not: a fleet may have more of them than tries."""
    tried: list[str] = []

    async def generate(_: Slot, replica: str) -> AsyncGenerator[SlotEvent]:
        tried.append(replica)
        if replica != "reader":
            raise SlotFailed("adapter_gone", "no")
        yield GENERATED

    monkeypatch.setattr("serve_app.fanout.attempts._BETWEEN_TRIES_S", 0)
    hash_ = f"sha256:{0:016}"
    reader = replace(REPLICA, id="reader", read=frozenset({hash_}), others=1)
    others = [replace(REPLICA, id=id_) for id_ in "abcdefghij"]
    generation = generation_of(1, replicas=[reader, *others], loras=[Lora(name="a", hash=hash_)])
    with generation.admitted():
        async with generation.generating(generate):
            events = [event async for event in generation.events(time.monotonic() + 30)]
    assert isinstance(events[-1], ImageEvent)
    assert tried == [tried[0], "reader"]


async def test_a_slot_that_is_returned_is_generated_elsewhere_however_often_and_told_to_wait() -> None:
    tried: list[str] = []

    async def generate(_: Slot, replica: str) -> AsyncGenerator[SlotEvent]:
        tried.append(replica)
        yield Progress(1)
        if len(tried) < 4:
            raise SlotReturned
        yield GENERATED

    replicas = [replace(REPLICA, id=id_, capacity=1) for id_ in "abcd"]
    generation = generation_of(1, replicas=replicas)
    with generation.admitted():
        async with generation.generating(generate):
            events = [event async for event in generation.events(time.monotonic() + 30)]
    assert [type(e) for e in events] == [*[ProgressEvent] * 4, ImageEvent]
    assert sorted(tried) == list("abcd"), "each time by another"


async def test_a_slot_that_every_replica_returns_again_and_again_fails_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_app.fanout.attempts._BETWEEN_TRIES_S", 0)

    async def generate(_: Slot, replica: str) -> AsyncGenerator[SlotEvent]:
        raise SlotReturned
        yield GENERATED

    (*_, last) = await events_of(generation_of(1), lambda slot: generate(slot, ""))
    assert isinstance(last, FailedEvent)
    assert last.error.type == "replica_lost"


async def test_a_slot_that_breaks_each_replica_it_is_generated_by_has_three_of_them_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_app.fanout.attempts._BETWEEN_TRIES_S", 0)
    broken: list[str] = []

    async def generate(_: Slot, replica: str) -> AsyncGenerator[SlotEvent]:
        if len(broken) == 1 and "d" not in broken:
            broken.append("d")
            raise SlotReturned("it only waited there")
        broken.append(replica)
        raise SlotReturned("the device has failed", begun=True)
        yield GENERATED

    generation = generation_of(1, replicas=[replace(REPLICA, id=id_) for id_ in "abcdefgh"])
    with generation.admitted():
        async with generation.generating(generate):
            (last,) = [event async for event in generation.events(time.monotonic() + 5)]
    assert isinstance(last, FailedEvent)
    assert last.error.type == "breaks_replicas"
    assert "settings may be the cause" in last.error.message
    assert len(broken) == 1 + 3


async def test_slots_on_a_replica_that_is_lost_from_sight_are_generated_elsewhere() -> None:
    replicas = [replace(REPLICA, id="frozen"), replace(REPLICA, id="well")]
    admission = Admission(100, lambda: 8)
    dispatcher = dispatcher_of(admission, *replicas)
    tried: list[tuple[int, str]] = []

    async def generate(slot: Slot, replica: str) -> AsyncGenerator[SlotEvent]:
        tried.append((slot.seed, replica))
        yield Progress(1)
        if replica == "frozen":
            await asyncio.Event().wait()
        await asyncio.sleep(0.01)
        yield GENERATED

    generation = Generation(slots(4), MODEL, admission, dispatcher.turn, time.monotonic(), lambda *_: None)
    with generation.admitted():
        async with generation.generating(generate):
            asyncio.get_running_loop().call_later(0.05, dispatcher.look, frozenset({"frozen"}))
            events = [event async for event in generation.events(time.monotonic() + 5)]
    assert sum(isinstance(e, ImageEvent) for e in events) == 4
    lost = [seed for seed, replica in tried if replica == "frozen"]
    assert len(lost) == 2
    assert sorted(seed for seed, replica in tried if replica == "well") == [50, 51, 52, 53], "with the same seeds"


async def test_a_slot_that_waits_again_says_its_place() -> None:
    """Its replica returns it, and all others are busy."""
    replicas = [replace(REPLICA, capacity=1)]
    release = asyncio.Event()
    returned: list[int] = []

    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        yield Progress(1)
        if slot.index == 0 and not returned:
            returned.append(0)
            raise SlotReturned
        await release.wait()
        yield GENERATED

    generation = generation_of(3, capacity=1, replicas=replicas)
    async with followed(generation, generate) as events:
        told = []
        async with asyncio.timeout(5):
            async for event in events:
                told.append((event.type, getattr(event, "index", None)))
                if told[-1] == ("queued", 0):
                    release.set()
    assert told.index(("progress", 0)) < told.index(("queued", 0)) < told.index(("image", 0))
