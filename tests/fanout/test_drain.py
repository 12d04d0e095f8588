"""An ingress that is told to end: what runs has a grace, and what it is not enough for ends with a typed answer."""

import asyncio
from typing import Any

import pytest

from serve_app.config import AppArgs
from serve_app.errors import ShuttingDown
from serve_app.messages import Slot
from serve_app.schemas import CompletedEvent, ErrorEvent, FailedEvent, GenerateRequest, ImageEvent
from tests.fakes import FakePool, Metrics, OneModel

REQUEST = GenerateRequest(prompt="a", num_images=2, seed=0, preview_steps=[])
SHEET = REQUEST.model_copy(update={"grid": True})


def stuck(*indexes: int) -> OneModel:
    """A service that never finishes the images with these indexes."""

    async def before(slot: Slot) -> None:
        if slot.index in indexes:
            await asyncio.Event().wait()

    return OneModel(FakePool(before=before), AppArgs(), Metrics())


async def test_what_finishes_within_the_grace_is_whole() -> None:
    release = asyncio.Event()

    async def before(_: Slot) -> None:
        await release.wait()

    service = OneModel(FakePool(before=before), AppArgs(), Metrics())
    answer = asyncio.create_task(service.generate(REQUEST))
    await asyncio.sleep(0)
    draining = asyncio.create_task(service.drain(30))
    await asyncio.sleep(0.1)
    assert not draining.done()
    release.set()
    async with asyncio.timeout(5):
        assert [image.status for image in (await answer).images] == ["succeeded", "succeeded"]
        await draining


async def test_what_is_finished_by_the_end_of_the_grace_is_returned() -> None:
    service = stuck(1)
    answer = asyncio.create_task(service.generate(REQUEST))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await service.drain(0.1)
        images = (await answer).images
    assert [image.status for image in images] == ["succeeded", "failed"]
    assert images[1].error.type == "shutting_down"  # type: ignore[union-attr]  # it has failed


async def test_a_request_without_a_picture_is_refused() -> None:
    service = stuck(0, 1)
    answer = asyncio.create_task(service.generate(REQUEST))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await service.drain(0.1)
        with pytest.raises(ShuttingDown):
            await answer


@pytest.mark.parametrize(("stuck_indexes", "last"), [((1,), CompletedEvent), ((0, 1), ErrorEvent)])
async def test_a_stream_has_its_last_event(stuck_indexes: tuple[int, ...], last: type) -> None:
    service = stuck(*stuck_indexes)
    async with asyncio.timeout(5), service.stream(REQUEST) as stream:
        draining = asyncio.create_task(service.drain(0.1))
        events = [event async for event in stream]
        assert sum(isinstance(event, ImageEvent) for event in events) == 2 - len(stuck_indexes)
        assert {e.error.type for e in events if isinstance(e, FailedEvent)} == {"shutting_down"}
        assert isinstance(events[-1], last)
    if isinstance(events[-1], ErrorEvent):
        assert events[-1].error.type == "shutting_down"
    await draining


class NoPixels(FakePool):
    """Its object store never answers."""

    async def pixels(self, ref: Any) -> Any:
        await asyncio.Event().wait()


NO_GRID = "the grid could not be made; the images are complete"


async def test_an_answer_does_not_lack_its_images_because_its_grid_takes_longer_than_the_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_app.fanout.generations._ENDING_S", 0.1)
    service = OneModel(NoPixels(), AppArgs(), Metrics())
    answer = asyncio.create_task(service.generate(SHEET))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await service.drain(0.1)
    async with asyncio.timeout(1):
        whole = await answer
    assert [image.status for image in whole.images] == ["succeeded", "succeeded"]
    assert (whole.grid, whole.warnings) == (None, [NO_GRID])


async def test_a_grid_is_given_up_soon_after_the_deadline_of_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.fanout.grid._EXTRA_S", 0.1)
    service = OneModel(NoPixels(), AppArgs(), Metrics())
    async with asyncio.timeout(5):
        answer = await service.generate(SHEET.model_copy(update={"timeout_s": 0.1}))
    assert [image.status for image in answer.images] == ["succeeded", "succeeded"]
    assert answer.warnings == [NO_GRID]


async def test_new_requests_are_refused_and_the_health_says_why() -> None:
    service = stuck()
    assert service.health().status == "ready"
    await service.drain(0)
    assert service.health().status == "stopping"
    with pytest.raises(ShuttingDown):
        await service.generate(REQUEST)
    with pytest.raises(ShuttingDown):
        async with service.stream(REQUEST):
            pass
