"""Streams of OpenAI's API: their previews, pictures and ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import APIError, OpenAI
from starlette.testclient import TestClient

from serve_app.errors import SlotFailed
from serve_app.fanout.sight import PoolStatus
from serve_app.ingress import sse
from serve_app.ingress.openai.answers import frames
from serve_app.ingress.openai.events import GENERATION
from serve_app.messages import Slot
from serve_app.schemas import Event, GenerateRequest, StartEvent
from tests.fakes import REPLICA, FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS
from tests.ingress.openai_api import URL, all_fail, frames_of, second_fails


def test_a_stream_has_openais_events_and_says_whose_they_are(client: TestClient) -> None:
    body = {
        "prompt": "a",
        "n": 2,
        "seed": 7,
        "stream": True,
        "partial_images": 1,
        "num_inference_steps": 2,
        "output_format": "webp",
    }
    events = frames_of(client.post(URL, json=body))
    for index in range(2):
        partial, completed = (event for event in events if event["image_index"] == index)
        common = {"background": "opaque", "quality": "auto", "size": "256x256", "image_index": index, "seed": 7 + index}
        assert {**partial, "created_at": 0} == {
            "type": "image_generation.partial_image",
            "b64_json": "preview",
            "output_format": "jpeg",
            "partial_image_index": 0,
            "step": 1,
            "created_at": 0,
            **common,
        }
        assert {**completed, "created_at": 0} == {
            "type": "image_generation.completed",
            "b64_json": f"picture{7 + index}",
            "url": None,
            "variations": [],
            "model": None,
            "output_format": "webp",
            "step": 2,
            "warnings": [],
            "created_at": 0,
            **common,
        }


def test_a_stream_says_what_a_person_should_know(client: TestClient) -> None:
    body = {"prompt": "a cat BREAK a dog", "n": 2}
    answer = client.post(URL, json=body).json()
    assert "BREAK" in answer["warnings"][0]
    assert [event["warnings"] for event in frames_of(client.post(URL, json={**body, "stream": True}))] == [
        answer["warnings"]
    ] * 2


def test_a_failed_image_does_not_end_the_stream(sdk: OpenAI, pool: FakePool) -> None:
    pool.before = second_fails
    with sdk.images.generate(prompt="a", n=3, stream=True, extra_body={"seed": 0}) as stream:
        events = [event.to_dict() for event in stream]
    assert [e["image_index"] for e in events if e["type"] == "image_generation.completed"] == [0, 2]
    assert [e for e in events if e["type"] == "image_generation.failed"] == [
        {
            "type": "image_generation.failed",
            "image_index": 1,
            "seed": 1,
            "failure": {"type": "out_of_memory", "message": "no room"},
        }
    ]


async def test_a_request_whose_images_are_all_cancelled_is_done(pool: FakePool) -> None:
    service, request = (
        OneModel(pool, ARGS, Metrics()),
        GenerateRequest(prompt="a", num_images=2, preview_steps=[]),
    )

    async def never(slot: Slot) -> None:
        await asyncio.Event().wait()

    pool.before = never

    async def cancelled(events: AsyncIterator[Event]) -> AsyncIterator[Event]:
        async for event in events:
            if isinstance(event, StartEvent):
                await service.cancel(event.id)
            yield event

    async with service.stream(request) as events:
        *failed, done = [frame async for frame in frames(cancelled(events), request, GENERATION)]
    assert done == b"data: [DONE]\n\n"
    assert [json.loads(frame.split(b"data: ")[1])["failure"]["type"] for frame in failed] == ["cancelled"] * 2


def test_a_stream_without_a_picture_ends_in_an_error(sdk: OpenAI, pool: FakePool) -> None:
    pool.before = all_fail
    kinds: list[str] = []
    with (
        pytest.raises(APIError, match="all images failed: no room"),
        sdk.images.generate(prompt="a", n=2, stream=True) as stream,
    ):
        kinds.extend(event.type for event in stream)
    assert kinds == ["image_generation.failed"] * 2


@pytest.mark.parametrize(
    ("steps", "partial_images", "expected"),
    [
        (20, 3, {5, 10, 15}),
        (20, 1, {10}),
        (30, 2, {10, 20}),
        (20, 0, set()),
        (2, 3, {1}),
        (1, 3, set()),
        (5, 3, {1, 2, 4}),
    ],
)
def test_partial_images_are_spread_over_the_steps(
    client: TestClient, pool: FakePool, steps: int, partial_images: int, expected: set[int]
) -> None:
    pool.status = PoolStatus((REPLICA,))

    async def fail(slot: Slot) -> None:
        raise SlotFailed("stop", "the slot is all that counts")

    pool.before = fail
    client.post(
        URL, json={"prompt": "a", "stream": True, "partial_images": partial_images, "num_inference_steps": steps}
    )
    assert {slot.preview_steps for slot in pool.slots} == {frozenset(expected)}


async def test_a_silent_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_PING_INTERVAL_S", 0.01)
    go_on = asyncio.Event()
    closed = False

    async def sent() -> Any:
        nonlocal closed
        try:
            yield b"one"
            await go_on.wait()
            yield b"two"
            await asyncio.Event().wait()
        finally:
            closed = True

    stream = sse._with_pings(sent())
    assert [await anext(stream) for _ in range(3)] == [b"one", b": ping\n\n", b": ping\n\n"]
    go_on.set()
    while (frame := await anext(stream)) == b": ping\n\n":
        pass
    assert frame == b"two"
    await stream.aclose()
    assert closed
