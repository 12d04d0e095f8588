"""What a fan-out counts of its requests, over a pool that generates when it is told to."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from serve_app import metrics
from serve_app.client import client
from serve_app.config import AppArgs
from serve_app.errors import InvalidRequest, NotReady, ServiceError, ShuttingDown, SlotFailed, TooManyWaiting
from serve_app.fanout.sight import PoolStatus
from serve_app.line import Line, begin
from serve_app.messages import Slot
from serve_app.schemas import GenerateRequest, StartEvent
from tests.fakes import GPU_SECONDS, REPLICA, FakePool, Metrics, OneModel

REQUEST = GenerateRequest(prompt="a cat", num_images=3, seed=0, preview_steps=[], width=64, height=64)


@dataclass
class Studio:
    """A service that generates what is let go."""

    pool: FakePool = field(default_factory=FakePool)
    counted: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.service = OneModel(self.pool, AppArgs(), self.counted)

    def images(self, outcome: str, reason: str = "") -> float:
        return self.counted.count(metrics.IMAGES, outcome=outcome, reason=reason)


async def no_memory_for_the_second(slot: Slot) -> None:
    if slot.index == 1:
        raise SlotFailed("out_of_memory", "no")


async def forever(slot: Slot) -> None:
    await asyncio.Event().wait()


async def test_a_failure_is_counted_by_its_type_and_the_try_before_it_too() -> None:
    studio = Studio(FakePool(before=no_memory_for_the_second))
    await studio.service.generate(REQUEST)
    assert (studio.images("succeeded"), studio.images("failed", "out_of_memory")) == (2, 1)
    assert studio.counted.count(metrics.GENERATED_AGAIN, reason="out_of_memory") == 1


async def test_it_is_counted_who_cancelled_an_image() -> None:
    studio = Studio(FakePool(before=forever))
    async with studio.service.stream(REQUEST) as events:
        start = await anext(events)
        assert isinstance(start, StartEvent)
        await studio.service.cancel(start.id, 0)
        await asyncio.sleep(0.01)
    assert (studio.images("cancelled", "client"), studio.images("cancelled", "left")) == (1, 2)


async def test_images_and_their_cost_are_counted_by_a_short_name_of_the_key() -> None:
    studio = Studio()
    token = client.set("0123456789abcdef")
    await studio.service.generate(REQUEST)
    client.reset(token)
    await studio.service.generate(REQUEST)
    for name in ("01234567", "none"):
        assert studio.counted.count(metrics.CLIENT_IMAGES, client=name) == 3
        assert studio.counted.count(metrics.CLIENT_GPU_SECONDS, client=name) == 3 * GPU_SECONDS


async def test_how_long_images_took_is_observed_for_each_and_how_far_apart_they_came_for_a_request() -> None:
    async def slow_last(slot: Slot) -> None:
        await asyncio.sleep(0.05 * (slot.index == 2))

    studio = Studio(FakePool(before=slow_last))
    await studio.service.generate(REQUEST)
    await studio.service.generate(REQUEST.model_copy(update={"num_images": 1}))
    observed = [metric for metric, _ in studio.counted.observed]
    assert (observed.count(metrics.IMAGE_SECONDS), observed.count(metrics.QUEUE_SECONDS)) == (4, 4)
    (skew,) = [value for metric, value in studio.counted.observed if metric is metrics.SKEW_SECONDS]
    assert skew > 0.03


async def drained(studio: Studio) -> None:
    await studio.service.drain(0)


async def without_replicas(studio: Studio) -> None:
    studio.pool.status = PoolStatus()


async def full(studio: Studio) -> None:
    studio.service._admission.max_waiting = -100


@pytest.mark.parametrize(
    ("make", "error"), [(drained, ShuttingDown), (without_replicas, NotReady), (full, TooManyWaiting)]
)
async def test_a_refusal_is_counted_by_its_reason(make: Any, error: type[ServiceError]) -> None:
    studio = Studio()
    await make(studio)
    with pytest.raises(error):
        await studio.service.generate(REQUEST)
    assert studio.counted.count(metrics.REFUSALS, reason=error.type) == 1
    assert studio.counted.outcomes == []


async def test_what_is_wrong_with_a_request_is_no_refusal() -> None:
    studio = Studio()
    studio.pool.status = PoolStatus((replace(REPLICA, schedulers=("euler",)),))
    with pytest.raises(InvalidRequest):
        await studio.service.generate(REQUEST.model_copy(update={"scheduler": "ddim"}))
    assert studio.counted.added == []


async def test_the_line_of_a_request_waits_for_a_generation_that_outlives_it() -> None:
    written: list[dict[str, Any]] = []
    release, line = asyncio.Event(), Line(lambda facts: written.append(dict(facts)))

    async def wait(_: Slot) -> None:
        await release.wait()

    begin(line)
    studio = Studio(FakePool(before=wait))
    with line.open():
        async with studio.service.open(REQUEST.model_copy(update={"on_disconnect": "finish"})) as reading:
            await anext(reading.entries)
    assert written == []
    (held,) = studio.service.generations._here.running
    release.set()
    await asyncio.wait([held.task])
    assert [facts["succeeded"] for facts in written] == [3]


async def test_a_look_at_the_replicas_sets_every_gauge() -> None:
    studio = Studio()
    studio.service._look(frozenset())
    assert studio.counted.gauges == {metrics.QUEUED: 0, metrics.READY: 2, metrics.TARGET: 2}
