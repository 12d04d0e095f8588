"""Requests that keep the best of their sketches, over a pool that says what each is worth."""

import asyncio

import pytest

from serve_app import metrics
from serve_app.errors import DeadlineExceeded, InvalidRequest, SlotFailed
from serve_app.messages import Slot
from serve_app.schemas import (
    CancelledEvent,
    CompletedEvent,
    FailedEvent,
    GenerateRequest,
    ImageEvent,
    Keep,
    PausedEvent,
    Picture,
)
from tests.fakes import GPU_SECONDS, SKETCH_SECONDS
from tests.fanout.studio import Studio, wait

SCORES = {0: 0.1, 1: None, 2: 0.5, 3: -0.5, 4: 0.5}


def keeping(best: int, images: int = 5, **changes: object) -> GenerateRequest:
    return GenerateRequest.model_validate(
        {
            "prompt": "a",
            "num_images": images,
            "seed": 0,
            "preview_every": 0,
            "keep": Keep(at_step=6, best=best, by="sharpness"),
            **changes,
        }
    )


def studio_of(scores: dict[int, float | None]) -> Studio:
    studio = Studio(ttl_s=0.01)
    studio.pool.scores = scores
    return studio


async def follow(studio: Studio, asked: GenerateRequest) -> None:
    async with asyncio.timeout(10), studio.service.open(asked) as reading:
        await studio._read(reading.entries)


@pytest.mark.parametrize(("best", "kept"), [(1, [2]), (2, [2, 4]), (3, [0, 2, 4]), (4, [0, 2, 3, 4])])
async def test_the_best_sketches_are_finished_and_the_others_end(best: int, kept: list[int]) -> None:
    """Of equals the first; what has no score comes last."""
    studio = studio_of(SCORES)
    await follow(studio, keeping(best))
    assert sorted(event.index for event in await studio.told(ImageEvent)) == kept
    others = await studio.told(CancelledEvent, 5 - best)
    assert {(event.error.type, event.index in kept) for event in others} == {("not_kept", False)}
    assert {event.index: event.score for event in await studio.told(PausedEvent, 5)} == SCORES
    assert all(event.expires_at is None for event in await studio.told(PausedEvent))
    assert isinstance(studio.last, CompletedEvent), "nothing has failed"
    assert studio.last.warnings == ['keep.by: "sharpness" has no score for some sketches, which come last']
    assert studio.last.timings.gpu == 5 * SKETCH_SECONDS + best * GPU_SECONDS
    assert studio.metrics.count(metrics.IMAGES, outcome="cancelled", reason="not_kept") == 5 - best
    assert studio.metrics.outcomes.count("cancelled") == 5 - best
    later = [slot for slot in studio.pool.slots if slot.kept]
    assert sorted(slot.index for slot in later) == kept, "from their sketches"


async def test_without_a_stream_only_the_best_are_on_the_grid() -> None:
    studio = studio_of(SCORES)
    answer = await studio.service.generate(keeping(2, grid=True, width=64, height=64))
    assert [image.index for image in answer.images if isinstance(image, Picture)] == [2, 4]
    assert answer.grid is not None
    assert (answer.grid.width, answer.grid.height) == (128, 64), "without places for the others"


async def test_a_sketch_that_has_lost_does_not_wait_for_the_last() -> None:
    last = asyncio.Event()
    studio = studio_of({0: 1.0, 1: 2.0, 2: 3.0, 3: 0.5})
    studio.pool.before = lambda slot: wait(last) if slot.index == 3 and slot.kept is None else asyncio.sleep(0)
    async with asyncio.timeout(10), studio.service.open(keeping(2, 4)) as reading:
        reader = asyncio.create_task(studio._read(reading.entries))
        (lost,) = await studio.told(CancelledEvent)
        assert lost.index == 0
        last.set()
        await reader
    assert sorted(event.index for event in await studio.told(ImageEvent)) == [1, 2]
    assert len(set(studio.pool.deadlines)) == 1, "what waits for other sketches has no more time than they"


async def test_where_images_fail_the_best_of_the_others_are_finished() -> None:
    async def fail(slot: Slot) -> None:
        if slot.index == 2:
            raise SlotFailed("internal", "broken")

    studio = studio_of({0: 1.0, 1: 2.0, 2: 3.0})
    studio.pool.before = fail
    await follow(studio, keeping(1, 3))
    assert [event.index for event in await studio.told(ImageEvent)] == [1]
    assert [event.index for event in await studio.told(FailedEvent)] == [2]


async def test_the_deadline_runs_while_sketches_wait_for_each_other() -> None:
    never = asyncio.Event()
    studio = studio_of({0: 1.0, 1: 2.0, 2: 3.0})
    studio.pool.before = lambda slot: wait(never) if slot.index == 0 else asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded):
        await studio.service.generate(keeping(2, 3, timeout_s=0.2))


async def test_a_drain_lets_the_best_end_within_its_grace() -> None:
    last = asyncio.Event()
    studio = studio_of({0: 2.0, 1: 1.0})
    studio.pool.before = lambda slot: wait(last) if slot.index == 1 and slot.kept is None else asyncio.sleep(0)
    async with asyncio.timeout(10), studio.service.open(keeping(1, 2)) as reading:
        reader = asyncio.create_task(studio._read(reading.entries))
        await studio.told(PausedEvent)
        drain = asyncio.create_task(studio.service.drain(30))
        await asyncio.sleep(0.1)  # longer than it looks again
        last.set()
        await drain
        await reader
    assert [event.index for event in await studio.told(ImageEvent)] == [0]


async def test_what_nothing_here_can_compare_by_is_refused() -> None:
    asked = keeping(1).model_copy(update={"keep": Keep(at_step=6, best=1, by="taste")})
    with pytest.raises(InvalidRequest, match="choose one of sharpness") as refused:
        await studio_of({}).service.generate(asked)
    assert refused.value.param == "keep.by"
