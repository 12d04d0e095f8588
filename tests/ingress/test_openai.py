"""The OpenAI Images API over a fake pool."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from openai import APIError, BadRequestError, NotFoundError, OpenAI
from starlette.testclient import TestClient

from serve_app.config import FilesConfig, ModelConfig
from serve_app.errors import SlotFailed
from serve_app.fanout.fanout import FanOut
from serve_app.fanout.sight import PoolStatus
from serve_app.ingress import sse
from serve_app.ingress.api import create_api
from serve_app.ingress.openai.answers import frames
from serve_app.ingress.openai.events import GENERATION
from serve_app.messages import Slot
from serve_app.schemas import Event, GenerateRequest, StartEvent
from tests.clients.bodies import LIBRECHAT_OPENAI, OPEN_WEBUI_OPENAI
from tests.fakes import REPLICA, FakePool, Metrics, NoPeers, tickets
from tests.ingress.conftest import ARGS, client_of

URL = "/v1/images/generations"


@pytest.fixture
def sdk(client: TestClient) -> OpenAI:
    return OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0)


def frames_of(response: Any) -> list[dict[str, Any]]:
    """Return a stream's events, having checked that each is named by its type and that the last frame is OpenAI's."""
    *sent, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    events = []
    for frame in sent:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_an_answer_has_openais_fields_and_ours(client: TestClient) -> None:
    answer = client.post(URL, json={"prompt": "a", "n": 2, "seed": 7}).json()
    assert answer.pop("created") > 0
    assert answer == {
        "background": "opaque",
        "output_format": "png",
        "quality": "auto",
        "size": "256x256",
        "warnings": [],
        "data": [
            {
                "b64_json": f"picture{7 + i}",
                "url": None,
                "image_index": i,
                "seed": 7 + i,
                "model": None,
                "failure": None,
            }
            for i in range(2)
        ],
    }


@pytest.mark.parametrize("body", [OPEN_WEBUI_OPENAI, LIBRECHAT_OPENAI])
def test_what_chat_programs_send(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/v1/images/generations?api-version=2025-04-01-preview", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["b64_json"].startswith("picture")


def test_what_is_asked_for_is_what_is_generated(sdk: OpenAI, pool: FakePool) -> None:
    sdk.images.generate(
        prompt="a cat",
        n=2,
        size="128x64",
        output_format="webp",
        output_compression=80,
        extra_body={
            "seeds": [5, 9],
            "negative_prompt": "dull",
            "num_inference_steps": 12,
            "guidance_scale": 4.5,
            "guidance_rescale": 0.7,
            "scheduler": "ddim",
        },
    )
    (slot, other) = pool.slots
    assert slot.recipe.guidance_rescale == 0.7
    assert (slot.seed, other.seed, slot.recipe.prompt, slot.recipe.negative_prompt) == (5, 9, "a cat", "dull")
    assert (slot.recipe.width, slot.recipe.height, slot.output.output_format, slot.output.output_compression) == (
        128,
        64,
        "webp",
        80,
    )
    assert (slot.recipe.num_inference_steps, slot.recipe.guidance_scale, slot.recipe.scheduler) == (12, 4.5, "ddim")


def test_where_nothing_is_said_it_is_one_image_by_the_models_defaults(client: TestClient, pool: FakePool) -> None:
    nulls = dict.fromkeys(
        (
            "n",
            "size",
            "model",
            "quality",
            "background",
            "response_format",
            "stream",
            "partial_images",
            "user",
            "seed",
            "style",
        )
    )
    for body in ({"prompt": "a"}, {"prompt": "a", "size": "auto"}, {"prompt": "a", **nulls}):
        assert client.post(URL, json=body).status_code == 200
    assert {
        (s.recipe.width, s.recipe.height, s.recipe.num_inference_steps, s.recipe.guidance_scale, s.output.output_format)
        for s in pool.slots
    } == {(256, 256, 20, 3.0, "png")}
    assert len(pool.slots) == 3


@pytest.mark.parametrize(
    "body",
    [
        {"quality": "hd"},
        {"quality": "max"},
        {"style": "vivid"},
        {"moderation": "low"},
        {"user": "me"},
        {"safety_identifier": "me"},
        {"background": "opaque"},
        {"partial_images": 0},
    ],
    ids=str,
)
def test_what_has_no_effect_is_accepted(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post(URL, json={"prompt": "a", **body}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": None}, "prompt", "required"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 10}, "n", "less than or equal to 9"),
        ({"n": "2"}, "n", "integer"),
        (
            {"size": "1024x1024"},
            "size",
            "1024x1024 is not served; width and height must be multiples of 8 from 64 to 512",
        ),
        ({"size": "100x100"}, "size", "multiples of 8"),
        ({"size": "big"}, "size", "auto or WIDTHxHEIGHT"),
        ({"size": "٢٥٦x256"}, "size", "auto or WIDTHxHEIGHT"),
        ({"output_format": "gif"}, "output_format", "png"),
        ({"output_compression": 101}, "output_compression", "100"),
        ({"partial_images": 1}, "partial_images", "stream"),
        ({"partial_images": 4, "stream": True}, "partial_images", "3"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"response_format": "url"}, "response_format", "files.path"),
        ({"response_format": "url", "stream": True}, "response_format", "files.path"),
        ({"response_format": "file"}, "response_format", "url"),
        ({"seed": -2}, "seed", "greater than or equal to -1"),
        ({"seed": 1, "seeds": [1]}, "seeds", "either"),
        ({"seeds": [1, 1]}, "seeds", "distinct"),
        ({"seeds": [1, 2], "n": 3}, "n", "number of seeds"),
        ({"num_inference_steps": 51}, "num_inference_steps", "50"),
        ({"guidance_scale": 31}, "guidance_scale", "30"),
        ({"scheduler": "plms"}, "scheduler", "euler"),
        ({"steps": 5}, "steps", "no such field"),
    ],
    ids=str,
)
def test_bad_input_is_a_400_in_openais_words(
    sdk: OpenAI, client: TestClient, pool: FakePool, body: dict[str, Any], param: str, says: str
) -> None:
    response = client.post(URL, json={"prompt": "a", **body})
    error = response.json()["error"]
    assert (response.status_code, set(error)) == (400, {"message", "type", "param", "code"})
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, "invalid_value")
    assert error["message"].startswith(f"{param}: ")
    assert says in error["message"]
    assert not pool.slots
    with pytest.raises(BadRequestError, match=param) as raised:
        sdk.images.generate(prompt="a", extra_body=body)
    assert raised.value.param == param


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_body_that_is_no_request_is_a_400(client: TestClient, content: bytes) -> None:
    response = client.post(URL, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


HUB_ID = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture
def serve(pool: FakePool, tmp_path: Path) -> Iterator[Callable[..., OpenAI]]:
    """Return what makes the SDK of a service with files or without, whose model lies at a path."""
    with ExitStack() as open_clients:

        def make(*, path: str = "embedded", files: bool = False) -> OpenAI:
            args = ARGS.model_copy(
                update={"model": ModelConfig(path=path), "files": FilesConfig(path=str(tmp_path) if files else None)}
            )
            service = FanOut(pool, NoPeers(), args, Metrics())
            http = open_clients.enter_context(
                TestClient(create_api(service, args)) if files else client_of(service, args)
            )
            return OpenAI(api_key="none", base_url="http://testserver/v1", http_client=http, max_retries=0)

        yield make


@pytest.mark.parametrize(
    "name",
    [
        HUB_ID,
        "fake",
        "openai/fake",
        "gpt-image-1",
        "gpt-image-1-mini",
        "gpt-image-1.5-2025-12-16",
        "chatgpt-image-latest",
        "dall-e-2",
        "dall-e-3",
        "openai/gpt-image-1",
        "openai/dall-e-3",
    ],
)
def test_the_model_has_many_names(serve: Callable[..., OpenAI], name: str) -> None:
    sdk = serve(path=HUB_ID)
    assert sdk.images.generate(prompt="a", model=name).data
    assert sdk.models.retrieve(name).id == name


def test_no_name_is_none(sdk: OpenAI, client: TestClient) -> None:
    for none in ("", " "):
        assert sdk.images.generate(prompt="a", model=none).data
    assert 'the model "" is not served here' in client.get("/v1/models/").json()["error"]["message"]


@pytest.mark.parametrize(
    "name",
    [
        "flux",
        "gpt-image",
        "gpt-4o",
        "dall-e",
        "dall-e-",
        "openai/",
        "openai/flux",
        "azure/dall-e-3",
        "stabilityai/fake",
    ],
)
def test_another_model_is_not_found(serve: Callable[..., OpenAI], name: str) -> None:
    sdk = serve(path=HUB_ID)
    for asked in (lambda: sdk.images.generate(prompt="a", model=name), lambda: sdk.models.retrieve(name)):
        with pytest.raises(
            NotFoundError, match=f'the model "{name}" is not served here; this service has "fake"'
        ) as raised:
            asked()
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_where_the_model_lies_is_told_to_nobody(serve: Callable[..., OpenAI]) -> None:
    folder = "/srv/secret/models/sdxl"
    sdk = serve(path=folder)
    assert sdk.images.generate(prompt="a", model=folder).data, "who knows it may name it"
    answers = [sdk.models.list(), sdk.images.generate(prompt="a", model="dall-e-3"), sdk.models.retrieve("dall-e-3")]
    told = [answer.to_json() for answer in answers] + [sdk._client.get("http://testserver/openapi.json").text]
    with pytest.raises(NotFoundError) as raised:
        sdk.models.retrieve("flux")
    assert not any("/srv" in text for text in (*told, str(raised.value)))


def test_the_served_model_is_listed(sdk: OpenAI) -> None:
    (card,) = sdk.models.list()
    assert (card.id, card.object) == ("fake", "model")
    assert sdk.models.retrieve("fake") == card


@pytest.mark.parametrize(
    ("files", "body", "at_url"),
    [
        (True, {"model": "dall-e-3"}, True),
        (True, {"model": "dall-e-2", "response_format": None}, True),
        (True, {"model": "openai/dall-e-3"}, True),
        (True, {"model": "dall-e-3", "response_format": "b64_json"}, False),
        (True, {"model": "gpt-image-1"}, False),
        (True, {"model": "gpt-image-1", "response_format": "url"}, True),
        (True, {"model": "fake"}, False),
        (True, {}, False),
        (False, {"model": "dall-e-3"}, False),
    ],
    ids=str,
)
def test_dall_e_answers_with_urls_where_it_can(
    serve: Callable[..., OpenAI], files: bool, body: dict[str, Any], at_url: bool
) -> None:
    sdk = serve(files=files)
    answer = sdk.images.generate(prompt="a", n=2, extra_body={"seed": 7, **body})
    assert answer.data
    for item in answer.data:
        assert (item.url is not None, item.b64_json is None) == (at_url, at_url)
        if item.url:
            assert sdk._client.get(item.url).headers["content-type"] == "image/png"


def test_a_stream_has_urls_if_they_are_asked_for(serve: Callable[..., OpenAI]) -> None:
    sdk, more = serve(files=True), {"seed": 7, "num_inference_steps": 2}
    with sdk.images.generate(
        prompt="a", n=2, model="dall-e-3", stream=True, partial_images=1, response_format="url", extra_body=more
    ) as stream:
        events = [event.to_dict() for event in stream]
    with sdk.images.generate(prompt="a", model="dall-e-3", stream=True, extra_body=more) as stream:
        (by_default,) = stream
    partial, completed = (event for event in events if event["image_index"] == 1)
    assert partial["b64_json"] == "preview"
    assert (completed["b64_json"], completed["seed"]) == (None, 8)
    file = sdk._client.get(str(completed["url"]))
    assert (file.headers["content-type"], file.content) == ("image/png", b64decode("picture8"))
    assert by_default.b64_json == "picture7", "whoever asks for a stream reads the pictures from it"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nope", 404, "not_found"),
        ("GET", URL, 405, "method_not_allowed"),
        ("POST", URL, 413, "payload_too_large"),
    ],
)
def test_every_error_below_v1_is_in_openais_words(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path, json={"prompt": "a" * 140_000})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"], error["param"]) == (
        status,
        "invalid_request_error",
        code,
        None,
    )


def test_a_full_queue_is_a_429_with_retry_after(client: TestClient, pool: FakePool) -> None:
    pool.status = PoolStatus((REPLICA,), 0.5)
    full = FanOut(pool, NoPeers(), ARGS, Metrics())
    full._admission.join(tickets(13), lambda: None)
    with TestClient(create_api(full, ARGS)) as busy:
        for stream in (False, True):
            response = busy.post(URL, json={"prompt": "a", "stream": stream})
            assert (response.status_code, response.headers["retry-after"]) == (429, "2")
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert response.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("route", [URL, "/v1/models"])
def test_without_a_replica_it_is_a_503(client: TestClient, pool: FakePool, route: str) -> None:
    pool.status = PoolStatus()
    response = client.post(route, json={"prompt": "a"}) if route == URL else client.get(route)
    assert (response.status_code, response.json()["error"]["type"], response.json()["error"]["code"]) == (
        503,
        "server_error",
        "not_ready",
    )


async def second_fails(slot: Slot) -> None:
    if slot.index == 1:
        raise SlotFailed("out_of_memory", "no room")


async def all_fail(slot: Slot) -> None:
    raise SlotFailed("out_of_memory", "no room")


def test_a_failed_image_is_in_its_place(sdk: OpenAI, pool: FakePool) -> None:
    pool.before = second_fails
    answer = sdk.images.generate(prompt="a", n=3, extra_body={"seed": 0})
    assert answer.data
    assert [item.b64_json for item in answer.data] == ["picture0", None, "picture2"]
    assert answer.data[1].to_dict() == {
        "b64_json": None,
        "url": None,
        "image_index": 1,
        "seed": 1,
        "model": None,
        "failure": {"type": "out_of_memory", "message": "no room"},
    }


def test_all_failed_is_a_500(client: TestClient, pool: FakePool) -> None:
    pool.before = all_fail
    response = client.post(URL, json={"prompt": "a"})
    assert (response.status_code, response.json()["error"]["type"], response.json()["error"]["code"]) == (
        500,
        "server_error",
        "generation_failed",
    )


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
        FanOut(pool, NoPeers(), ARGS, Metrics()),
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
