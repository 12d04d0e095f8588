import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from serve_app.errors import ReplicaLost, SlotFailed
from serve_app.fanout.admission import Admission
from serve_app.messages import Progress, Slot, SlotEvent
from serve_app.schemas import CancelledEvent, Event, FailedEvent, ImageEvent, PreviewEvent, ProgressEvent, QueuedEvent
from tests.fakes import tickets
from tests.fanout.generations import GENERATED, events_of, followed, generation_of, picture


async def test_each_slots_events_come_in_order_and_carry_its_seed() -> None:
    generation = generation_of(3)
    events = await events_of(generation, picture)
    for index in range(3):
        own = [e for e in events if getattr(e, "index", None) == index]
        assert [type(e) for e in own] == [ProgressEvent, PreviewEvent, ImageEvent]
        assert {getattr(e, "seed", None) for e in own} == {50 + index}
    assert sorted(generation.images) == [0, 1, 2]
    assert generation.pixels == {0: "ref", 1: "ref", 2: "ref"}
    assert generation.timings is not None
    assert generation.timings.decode == 0.3


async def test_no_image_waits_for_another() -> None:
    release = asyncio.Event()

    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        if slot.index == 0:
            await release.wait()
        yield GENERATED

    generation = generation_of(2)
    async with followed(generation, generate) as events:
        first = await anext(events)
        assert isinstance(first, ImageEvent)
        assert first.index == 1
        release.set()
        assert [e.index async for e in events if isinstance(e, ImageEvent)] == [0]


@pytest.mark.parametrize(
    ("error", "type_"),
    [
        (SlotFailed("out_of_memory", "no room"), "out_of_memory"),
        (ReplicaLost(), "replica_lost"),
        (ZeroDivisionError("secret"), "internal"),
    ],
)
async def test_a_failing_slot_beside_good_ones(error: Exception, type_: str) -> None:
    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        if slot.index == 1:
            raise error
        yield GENERATED

    events = await events_of(generation_of(3), generate)
    assert sorted(e.index for e in events if isinstance(e, ImageEvent)) == [0, 2]
    (bad,) = [e for e in events if isinstance(e, FailedEvent)]
    assert (bad.index, bad.seed, bad.error.type) == (1, 51, type_)
    assert "secret" not in bad.error.message


@pytest.mark.parametrize("_", range(20))
async def test_a_cancellation_that_comes_together_with_an_event_is_not_lost(_: int) -> None:
    release = asyncio.Event()

    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        await release.wait()
        yield Progress(1)
        await asyncio.Event().wait()

    consumer = asyncio.create_task(events_of(generation_of(1), generate))
    await asyncio.sleep(0.01)
    release.set()
    await asyncio.sleep(0)
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):
            await consumer


async def test_what_was_generated_by_the_deadline_counts() -> None:
    generation = generation_of(2)
    async with followed(generation, picture, 0.2) as events:
        await anext(events)
        await asyncio.sleep(0.3)  # a slow consumer: both pictures have come by the time it looks
        kinds = [type(e) async for e in events]
    assert kinds.count(ImageEvent) == 2


async def test_the_deadline_is_kept_however_much_there_is_to_tell() -> None:
    """Each event takes its reader longer than the next one takes to come, so that there is always one to tell."""
    closed: list[int] = []

    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        if slot.index == 0:
            await asyncio.sleep(0.15)
            yield GENERATED
            return
        try:
            for step in range(1000):
                yield Progress(step)
                await asyncio.sleep(0.001)
        finally:
            closed.append(slot.index)

    generation, started = generation_of(3), time.monotonic()
    ends: list[Event] = []
    async with followed(generation, generate, 0.2) as events:
        async for event in events:
            if not isinstance(event, ProgressEvent):
                ends.append(event)
                if len(ends) == 1:
                    assert isinstance(event, ImageEvent), "it came in time, though behind many others"
                    await asyncio.sleep(0)
                    assert sorted(closed) == [1, 2], "the work has stopped before its end is told"
            await asyncio.sleep(0.01)
    assert [type(event) for event in ends] == [ImageEvent, FailedEvent, FailedEvent]
    assert time.monotonic() - started < 1


async def test_events_that_end_without_a_picture_are_a_lost_replica() -> None:
    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        yield Progress(1)

    (*_, last) = await events_of(generation_of(1), generate)
    assert isinstance(last, FailedEvent)
    assert last.error.type == "replica_lost"


async def test_at_the_deadline_the_rest_has_failed_and_is_cancelled() -> None:
    closed: list[int] = []

    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        try:
            if slot.index:
                await asyncio.Event().wait()
            yield GENERATED
        finally:
            closed.append(slot.index)

    generation = generation_of(3)
    events = await events_of(generation, generate, seconds=0.2)
    assert [e.index for e in events if isinstance(e, ImageEvent)] == [0]
    assert [(e.index, e.error.type) for e in events if isinstance(e, FailedEvent)] == [
        (1, "deadline_exceeded"),
        (2, "deadline_exceeded"),
    ]
    assert sorted(closed) == [0, 1, 2]


async def test_closing_the_events_closes_every_call_and_gives_up_the_places_in_the_queue() -> None:
    open_calls: set[int] = set()

    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        open_calls.add(slot.index)
        try:
            yield Progress(1)
            await asyncio.Event().wait()
        finally:
            open_calls.discard(slot.index)

    admission = Admission(100, lambda: 100)
    generation = generation_of(3, admission)
    async with followed(generation, generate) as events:
        await anext(events)
        await asyncio.sleep(0)
        assert open_calls == {0, 1, 2}
        assert admission.unfinished == 3
    assert not open_calls
    assert admission.unfinished == 0


async def test_waiting_slots_are_told_their_place_whenever_it_changes() -> None:
    turn = [asyncio.Event() for _ in range(3)]

    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        await turn[slot.index].wait()
        yield GENERATED

    generation = generation_of(3, capacity=1)
    async with followed(generation, generate) as events:
        assert [await anext(events), await anext(events)] == [
            QueuedEvent(index=1, position=1),
            QueuedEvent(index=2, position=2),
        ]
        turn[0].set()
        assert isinstance(await anext(events), ImageEvent)
        assert await anext(events) == QueuedEvent(index=2, position=1)
        turn[1].set()
        turn[2].set()
        assert [type(e) async for e in events] == [ImageEvent, ImageEvent]


async def test_a_cancelled_slot_ends_and_the_others_go_on() -> None:
    release = asyncio.Event()
    closed: list[int] = []

    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        try:
            yield Progress(1)
            await release.wait()
            yield GENERATED
        finally:
            closed.append(slot.index)

    generation = generation_of(3)
    async with followed(generation, generate) as events:
        assert {(await anext(events)).type for _ in range(3)} == {"progress"}
        generation.cancel(1)
        generation.cancel(1)
        event = await anext(events)
        assert isinstance(event, CancelledEvent)
        assert (event.index, event.seed, event.error.type) == (1, 51, "cancelled")
        await asyncio.sleep(0)
        assert closed == [1], "its call is closed, and no other"
        release.set()
        assert {e.index async for e in events if isinstance(e, ImageEvent)} == {0, 2}
    assert generation.cancelled == {1}


async def test_a_slot_is_cancelled_though_its_picture_is_there_but_not_yet_told() -> None:
    generation = generation_of(2)
    async with followed(generation, picture) as events:
        await anext(events)
        await asyncio.sleep(0.1)  # both pictures wait to be told
        generation.cancel(1)
        rest = [event async for event in events]
    assert [e.index for e in rest if isinstance(e, ImageEvent)] == [0]
    assert [e.index for e in rest if isinstance(e, CancelledEvent)] == [1]


async def test_a_slot_that_has_ended_cannot_be_cancelled() -> None:
    generation = generation_of(1)
    await events_of(generation, picture)
    generation.cancel(None)
    assert generation.cancelled == set()
    assert generation.images[0].status == "succeeded"


async def test_a_slot_that_is_cancelled_before_its_call_is_never_generated() -> None:
    generated: list[int] = []

    async def generate(slot: Slot) -> AsyncGenerator[SlotEvent]:
        generated.append(slot.index)
        yield GENERATED

    generation = generation_of(2)
    generation.cancel(0)
    assert {type(e) for e in await events_of(generation, generate)} == {CancelledEvent, ImageEvent}
    assert generated == [1]


async def test_where_the_queue_has_moved_often_it_is_told_once() -> None:
    """Each image of any request moves it: all that go on at once would keep every request busy with all the moves."""
    admission = Admission(100, lambda: 0)
    generation = generation_of(1, admission)
    with generation.admitted():
        for other in tickets(50):
            admission.join([other], lambda: None)
        assert generation._inbox.qsize() == 1
