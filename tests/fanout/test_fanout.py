"""What does not wait for what, over a pool that generates when it is told to."""

import asyncio
from dataclasses import dataclass, field

import pytest

from serve_app.config import AppArgs
from serve_app.fanout.fanout import FanOut
from serve_app.messages import Slot
from serve_app.schemas import GenerateRequest, StartEvent
from tests.fakes import FakePool, Metrics, NoPeers

REQUEST = GenerateRequest(prompt="a cat and a dog", num_images=2, seed=0, preview_steps=[])


@dataclass
class SlowReaders(FakePool):
    """Knows what the model does not see of a prompt only once all slots are being generated."""

    generating: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate_begins(self, slot: Slot) -> None:
        if len(self.slots) == REQUEST.num_images:
            self.generating.set()

    async def cut_off(self, prompt: str) -> str:
        await self.generating.wait()
        return "dog" if prompt else ""


def fan_out() -> FanOut:
    pool = SlowReaders()
    pool.before = pool.generate_begins
    return FanOut(pool, NoPeers(), AppArgs(), Metrics())


WARNING = "prompt is longer than the model can read; it does not see: dog"


async def test_an_answer_is_generated_while_its_prompt_is_looked_at() -> None:
    async with asyncio.timeout(5):
        answer = await fan_out().generate(REQUEST)
    assert [image.status for image in answer.images] == ["succeeded", "succeeded"]
    assert answer.warnings == [WARNING]


async def test_a_stream_is_generated_before_it_can_say_so() -> None:
    async with asyncio.timeout(5), fan_out().stream(REQUEST) as stream:
        events = [event async for event in stream]
    assert [event.type for event in events if event.type != "progress"] == ["start", "image", "image", "completed"]
    assert isinstance(events[0], StartEvent)
    assert events[0].warnings == [WARNING]


class Speechless(FakePool):
    async def cut_off(self, prompt: str) -> str:
        raise RuntimeError("not one of the errors that are expected")


async def test_no_picture_is_lost_with_what_could_not_be_said_of_its_prompt(caplog: pytest.LogCaptureFixture) -> None:
    answer = await FanOut(Speechless(), NoPeers(), AppArgs(), Metrics()).generate(REQUEST)
    assert [image.status for image in answer.images] == ["succeeded", "succeeded"]
    assert answer.warnings == []
    assert "could not ask the replicas" in caplog.text


async def test_looking_at_a_prompt_ends_with_its_request() -> None:
    service = fan_out()
    before = asyncio.all_tasks()
    async with service.stream(
        REQUEST.model_copy(update={"num_images": 1})
    ) as stream:  # never looked at: it waits for two slots
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert asyncio.all_tasks() == before
