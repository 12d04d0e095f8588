"""Cancelling by id, over a pool that generates when it is told to."""

import asyncio
import time

import pytest

from serve_app.config import AppArgs
from serve_app.errors import GenerationFailed, NotFound, SlotFailed
from serve_app.fanout.admission import Admission
from serve_app.fanout.event_log import EventLog
from serve_app.fanout.generation import Generation
from serve_app.fanout.held import Held, Terms
from serve_app.fanout.registry import _REMEMBERED_REQUESTS, Registry
from serve_app.fanout.sketches import Branch
from serve_app.messages import Slot
from serve_app.recipe import Changes, Recipe
from serve_app.schemas import BatchResult, Event, GenerateRequest, ImageEvent, StartEvent
from tests.conftest import make_slot
from tests.fakes import MODEL, FakePool, Metrics, OneModel, dispatcher_of

REQUEST = GenerateRequest(prompt="a", num_images=3, seed=0)


class Studio:
    """A fan-out whose images wait for `release`."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.started = asyncio.Event()
        self.pool = FakePool(before=self.before)
        self.metrics = Metrics()
        self.service = OneModel(self.pool, AppArgs(), self.metrics)

    async def before(self, slot: Slot) -> None:
        if len(self.pool.slots) == REQUEST.num_images:
            self.started.set()
        await self.release.wait()

    async def generate(self, request: GenerateRequest = REQUEST) -> tuple[str, asyncio.Task[BatchResult]]:
        """Return the id of a request that is being generated, and its answer to come."""
        answer = asyncio.create_task(self.service.generate(request))
        await self.started.wait()
        (id_,) = self.service.generations._here._held
        return id_, answer


async def test_one_image_of_a_request_is_cancelled_and_the_answer_says_so() -> None:
    studio = Studio()
    id_, answer = await studio.generate()
    for _ in range(2):
        assert (await studio.service.cancel(id_, 1)).model_dump() == {"id": id_, "cancelled": [1]}
    studio.release.set()
    assert [image.status for image in (await answer).images] == ["succeeded", "cancelled", "succeeded"]
    assert sorted(studio.metrics.outcomes) == ["cancelled", "succeeded", "succeeded"]
    assert (await studio.service.cancel(id_, 1)).cancelled == [1], "the same answer, shortly after the end too"
    with pytest.raises(NotFound):
        await studio.service.cancel(id_, 0)


async def test_a_request_whose_images_are_all_cancelled_is_answered_without_an_error() -> None:
    studio = Studio()
    id_, answer = await studio.generate(REQUEST.model_copy(update={"grid": True}))
    assert (await studio.service.cancel(id_)).cancelled == [0, 1, 2]
    result = await answer
    assert [image.status for image in result.images] == ["cancelled"] * 3
    assert result.grid is None
    assert result.timings.denoise == 0
    assert not studio.pool.open
    assert studio.service._admission.unfinished == 0
    assert (await studio.service.cancel(id_)).cancelled == [0, 1, 2]


async def test_its_stream_is_completed() -> None:
    studio = Studio()
    events: list[Event] = []
    async with studio.service.stream(REQUEST) as stream:
        async for event in stream:
            events.append(event)
            if isinstance(event, StartEvent):
                await studio.service.cancel(event.id)
    kinds = [event.type for event in events if event.type not in ("progress", "preview")]
    assert kinds == ["start", "cancelled", "cancelled", "cancelled", "completed"]
    assert not studio.pool.open


async def test_what_is_left_may_still_fail() -> None:
    studio = Studio()

    async def fail(slot: Slot) -> None:
        await studio.before(slot)
        raise SlotFailed("out_of_memory", "no room")

    studio.pool.before = fail
    id_, answer = await studio.generate()
    await studio.service.cancel(id_, 0)
    studio.release.set()
    with pytest.raises(GenerationFailed, match="no room"):
        await answer


@pytest.mark.parametrize("index", [None, 0, 3, -1])
async def test_what_is_unknown_finished_or_out_of_range_is_not_found(index: int | None) -> None:
    studio = Studio()
    id_, answer = await studio.generate()
    with pytest.raises(NotFound):
        await studio.service.cancel("no-such-request", index)
    if index not in (None, 0):
        with pytest.raises(NotFound):
            await studio.service.cancel(id_, index)
    studio.release.set()
    await answer
    with pytest.raises(NotFound):
        await studio.service.cancel(id_, index)


async def nothing() -> None: ...


async def unbranched(recipe: Recipe, step: int, changes: Changes) -> Branch:
    return Branch(recipe, ())


def held(keep_s: float, picture: str = "") -> Held:
    """Return a generation that ends at once, with an image event of this size if it is not empty."""
    log = EventLog()
    if picture:
        log.append(ImageEvent(index=0, seed=0, width=8, height=8, media_type="image/png", b64_json=picture))
    admission = Admission(1, lambda: 1)
    turn = dispatcher_of(admission).turn
    generation = Generation([make_slot()], MODEL, admission, turn, time.monotonic(), lambda *_: None)
    return Held(generation, log, nothing(), Terms("b64_json", 0, keep_s), created=0, branch=unbranched)


async def test_the_memory_of_ended_requests_is_bounded() -> None:
    generations = Registry(max_bytes=2**20)
    for id_ in range(_REMEMBERED_REQUESTS + 1):
        generations.hold(str(id_), held(keep_s=0))
        generations.cancel(str(id_), None)
    await asyncio.sleep(0.1)
    assert generations.cancel("0", None) == []
    assert generations.cancel("1", None) == [0]
    assert generations.get("1") is None


async def test_a_part_for_another_ingress_replica_is_bounded() -> None:
    generation = held(keep_s=60)
    for index in range(3):
        generation.log.append(
            ImageEvent(index=index, seed=0, width=8, height=8, media_type="image/png", b64_json="x" * 1000)
        )
    sizes = {most_bytes: len(generation.part(0, most_bytes).entries) for most_bytes in (1, 1000, 2999, 3000)}
    assert sizes == {1: 1, 1000: 1, 2999: 2, 3000: 3}
    await generation.task


async def test_what_has_ended_is_kept_for_its_time_and_no_longer() -> None:
    generations = Registry(max_bytes=2**20)
    generations.hold("a", held(keep_s=0.3))
    await asyncio.sleep(0.1)
    assert generations.get("a")
    await asyncio.sleep(0.4)
    assert generations.get("a") is None


async def test_the_oldest_go_first_where_there_is_no_room() -> None:
    generations = Registry(max_bytes=100_000)
    for id_ in "abc":
        generations.hold(id_, held(60, picture="x" * 40_000))
        await asyncio.sleep(0.01)
    assert [id_ for id_ in "abc" if generations.get(id_)] == ["b", "c"]
    generations.hold("d", held(60, picture="x" * 200_000))
    await asyncio.sleep(0.01)
    assert [id_ for id_ in "abcd" if generations.get(id_)] == [], "too large even alone"


async def test_the_time_of_a_generation_that_had_to_go_does_not_end_a_later_one_of_the_same_id() -> None:
    generations = Registry(max_bytes=50_000)
    generations.hold("a", held(keep_s=0.1, picture="x" * 40_000))
    await asyncio.sleep(0.01)
    generations.hold("b", held(60, picture="x" * 40_000))
    await asyncio.sleep(0.01)
    assert generations.get("a") is None, "there was no room"
    generations.hold("a", later := held(60))
    await asyncio.sleep(0.2)
    assert generations.get("a") is later


async def test_what_runs_takes_no_room_of_what_has_ended_and_is_cancelled_at_the_close() -> None:
    generations, running = Registry(max_bytes=0), held(60, picture="x")
    running.task.cancel()
    running.task = asyncio.create_task(asyncio.sleep(60))
    generations.hold("a", running)
    await asyncio.sleep(0.01)
    assert generations.get("a")
    await generations.close()
    assert running.task.cancelled()
