"""What neither delays nor costs a picture, over a pool that generates when it is told to."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from ray.serve import metrics

from serve_app.config import AppArgs, LimitsConfig
from serve_app.fanout.pool import Tell, nobody
from serve_app.fanout.sight import PoolStatus
from serve_app.messages import Slot
from serve_app.metrics import GENERATED_AGAIN, INGRESS
from serve_app.metrics import Metrics as Counted
from serve_app.schemas import BatchResult, CompletedEvent, Event, GenerateRequest, StartEvent
from tests.fakes import REPLICA, FakePool, Metrics, OneModel

REQUEST = GenerateRequest(prompt="a cat and a dog", num_images=2, seed=0, preview_steps=[], width=64, height=64)
SHEET = REQUEST.model_copy(update={"grid": True})
UNREAD = "prompt is longer than the model can read; it does not see: dog"


def fan_out(pool: FakePool, metrics: Counted | None = None) -> OneModel:
    return OneModel(pool, AppArgs(), metrics or Metrics())


async def told(service: OneModel, request: GenerateRequest) -> tuple[BatchResult, list[Event]]:
    """Return what both kinds of request are told."""
    answer = await service.generate(request)
    async with service.stream(request) as stream:
        return answer, [event async for event in stream if event.type != "progress"]


@dataclass
class Mute(FakePool):
    """Its replicas answer nothing at all."""

    async def forever(self, slot: Slot) -> None:
        await asyncio.Event().wait()

    async def cut_off(self, prompt: str) -> str:
        await asyncio.Event().wait()
        return ""


class News(Mute):
    """Tells what the test says."""

    tell: Tell

    async def keep_polling(self, tell: Tell = nobody, waiting: Callable[[], int] = int) -> None:
        self.tell = tell


async def test_how_much_of_a_prompt_is_read_can_change_in_a_run() -> None:
    pool = FakePool()
    service = fan_out(pool)
    for most in (225, 75):
        service.reconfigure(AppArgs(limits=LimitsConfig(max_prompt_tokens=most)))
        await service.generate(REQUEST)
    assert [slot.max_prompt_tokens for slot in pool.slots] == [225, 225, 75, 75]


async def test_a_stream_starts_before_any_replica_answers_anything() -> None:
    pool = Mute()
    pool.before = pool.forever
    request = REQUEST.model_copy(update={"prompt": "a long prompt " * 50})
    async with asyncio.timeout(0.5), fan_out(pool).stream(request) as stream:
        assert isinstance(await anext(stream), StartEvent)


async def test_what_a_replica_has_not_read_of_a_prompt_is_said_once_with_its_pictures() -> None:
    answer, events = await told(fan_out(FakePool(warnings=(UNREAD,))), REQUEST)
    assert answer.warnings == [UNREAD]
    assert [event.type for event in events] == ["start", "image", "image", "completed"]
    assert isinstance(events[-1], CompletedEvent)
    assert events[-1].warnings == [UNREAD]


class Torn(FakePool):
    """Its pixels are not of the size that they should be."""

    async def pixels(self, ref: Any) -> Any:
        return np.zeros((7, 7, 3), dtype=np.uint8)


class Unreachable(FakePool):
    async def pixels(self, ref: Any) -> Any:
        raise RuntimeError("not one of the errors that are expected")


@pytest.mark.parametrize("pool", [Torn(), Unreachable()], ids=lambda pool: type(pool).__name__)
async def test_a_grid_that_cannot_be_made_costs_no_image(pool: FakePool, caplog: pytest.LogCaptureFixture) -> None:
    answer, events = await told(fan_out(pool), SHEET)
    assert [image.status for image in answer.images] == ["succeeded", "succeeded"]
    assert (answer.grid, answer.warnings) == (None, ["the grid could not be made; the images are complete"])
    assert [event.type for event in events] == ["start", "image", "image", "completed"]
    assert isinstance(events[-1], CompletedEvent)
    assert events[-1].warnings == answer.warnings
    assert "Traceback" in caplog.text


async def test_the_gauge_of_what_waits_follows_what_the_replicas_tell() -> None:
    """One replica of two goes, and nothing is admitted or ends."""
    pool, metrics = News(), Metrics()
    pool.before = pool.forever
    service = fan_out(pool, metrics)
    async with service.running(), service.stream(REQUEST.model_copy(update={"num_images": 8})):
        await asyncio.sleep(0)
        assert metrics.now_waiting == 0
        pool.status = PoolStatus((REPLICA,))
        pool.tell(set())
        assert metrics.now_waiting == 4


async def test_metrics_that_cannot_be_counted_cost_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(INGRESS)

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("the metrics agent is gone")

    monkeypatch.setattr(metrics.Counter, "inc", broken)
    monkeypatch.setattr(metrics.Gauge, "set", broken)
    monkeypatch.setattr(metrics.Histogram, "observe", broken)
    request = REQUEST.model_copy(update={"preview_steps": [1]})
    answer, events = await told(fan_out(FakePool(), counted), request)
    assert [image.status for image in answer.images] == ["succeeded", "succeeded"]
    assert events[-1].type == "completed"
    counted.add(GENERATED_AGAIN, reason="lost")
