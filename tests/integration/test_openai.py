"""The real OpenAI SDK against the running service."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI, RateLimitError
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from PIL import Image

from tests.integration.conftest import SMALL, Running, eventually

PROMPT = "a red apple"


@pytest.fixture
def sdk(app: Running) -> Iterator[OpenAI]:
    with OpenAI(api_key="none", base_url=f"{app.url}/v1", max_retries=0, timeout=60) as sdk:
        yield sdk


@pytest.fixture
async def async_sdk(app: Running) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key="none", base_url=f"{app.url}/v1", max_retries=0, timeout=60) as sdk:
        yield sdk


def extra(**fields: Any) -> dict[str, Any]:
    return {"num_inference_steps": 4, **fields}


def seeds_and_files(answer: ImagesResponse) -> dict[int, str | None]:
    assert answer.data
    return {item.seed: item.b64_json for item in answer.data}  # type: ignore[attr-defined]  # an extension, which the SDK lets through


def test_n_images_with_distinct_seeds_are_those_of_generate(app: Running, sdk: OpenAI) -> None:
    answer = sdk.images.generate(prompt=PROMPT, n=4, size="64x64", extra_body=extra(seed=7))
    own = app.generate(num_images=4, seed=7)
    assert seeds_and_files(answer) == {image["seed"]: image["b64_json"] for image in own["images"]}
    assert list(seeds_and_files(answer)) == [7, 8, 9, 10]
    assert len(set(seeds_and_files(answer).values())) == 4
    assert (answer.size, answer.output_format, answer.background) == ("64x64", "png", "opaque")


async def test_the_async_sdk_gets_the_same(async_sdk: AsyncOpenAI) -> None:
    several, one = await asyncio.gather(
        async_sdk.images.generate(prompt=PROMPT, size="64x64", extra_body=extra(seeds=[5, 6])),
        async_sdk.images.generate(prompt=PROMPT, size="64x64", extra_body=extra(seed=6)),
    )
    assert seeds_and_files(several)[6] == seeds_and_files(one)[6]


@pytest.mark.parametrize(("output_format", "compression"), [("jpeg", 30), ("webp", None)])
def test_other_formats(sdk: OpenAI, output_format: Any, compression: int | None) -> None:
    answer = sdk.images.generate(
        prompt=PROMPT,
        size="64x64",
        output_format=output_format,
        output_compression=compression,
        user="me",
        extra_body=extra(),
    )
    (file,) = seeds_and_files(answer).values()
    assert file
    assert Image.open(io.BytesIO(base64.b64decode(file))).format == output_format.upper()


def test_a_url_leads_to_the_file(app: Running, sdk: OpenAI) -> None:
    answer = sdk.images.generate(prompt=PROMPT, n=2, size="64x64", model="dall-e-3", extra_body=extra(seed=7))
    with sdk.images.generate(
        prompt=PROMPT, n=2, size="64x64", response_format="url", stream=True, extra_body=extra(seed=7)
    ) as stream:
        events: list[Any] = sorted(stream, key=lambda event: event.image_index)
    own = app.generate(num_images=2, seed=7)["images"]
    assert answer.data
    assert len({item.url for item in (*answer.data, *events)}) == 2, "the same picture is the same file"
    for item, image in zip((*answer.data, *events), (*own, *own), strict=True):
        assert item.b64_json is None
        assert item.url
        response = httpx2.get(item.url)
        assert response.headers["content-type"] == "image/png"
        assert response.content == base64.b64decode(image["b64_json"])


def test_a_stream_forms_every_picture_in_order(app: Running, sdk: OpenAI) -> None:
    """A hundred steps, so that the previews' least distance drops none."""
    steps, partial_images = 100, 3
    body = extra(seed=7, num_inference_steps=steps)
    with sdk.images.generate(
        prompt=PROMPT, n=3, size="64x64", stream=True, partial_images=partial_images, extra_body=body
    ) as stream:
        events = list(stream)
    own = app.generate(num_images=3, seed=7, num_inference_steps=steps)["images"]
    assert len(events) == 3 * (partial_images + 1)
    for index in range(3):
        *partials, completed = [event for event in events if event.image_index == index]  # type: ignore[union-attr]  # an extension, as are seed and step
        assert all(isinstance(partial, ImageGenPartialImageEvent) for partial in partials)
        assert [partial.partial_image_index for partial in partials] == [0, 1, 2]  # type: ignore[union-attr]  # as the line above has made sure
        assert [partial.step for partial in partials] == [25, 50, 75]  # type: ignore[union-attr]  # as above
        assert {partial.output_format for partial in partials} == {"jpeg"}
        assert {Image.open(io.BytesIO(base64.b64decode(partial.b64_json))).format for partial in partials} == {"JPEG"}
        assert isinstance(completed, ImageGenCompletedEvent)
        assert completed.b64_json == own[index]["b64_json"]
        assert {event.seed for event in (*partials, completed)} == {7 + index}  # type: ignore[union-attr]  # as above


def test_edits_and_variations_are_those_of_generate(app: Running, sdk: OpenAI) -> None:
    photo, hole = png(Image.effect_noise((64, 64), 50)), Image.new("RGBA", (64, 64), "black")
    hole.paste((0, 0, 0, 0), (0, 0, 32, 64))
    marks = png(hole.getchannel("A").point(lambda alpha: 255 - alpha))
    init, body = base64.b64encode(photo).decode(), extra(seed=7)
    whole = sdk.images.edit(image=photo, prompt=PROMPT, n=2, extra_body=body)
    own = app.generate(num_images=2, seed=7, init_image=init)
    assert seeds_and_files(whole) == {image["seed"]: image["b64_json"] for image in own["images"]}
    with sdk.images.edit(image=photo, mask=png(hole), prompt=PROMPT, n=2, stream=True, extra_body=body) as stream:
        parts: list[Any] = sorted(stream, key=lambda event: event.image_index)
    own = app.generate(num_images=2, seed=7, init_image=init, mask_image=base64.b64encode(marks).decode())
    assert [pixels(part.b64_json) for part in parts] == [pixels(image["b64_json"]) for image in own["images"]]
    with pytest.deprecated_call():
        varied = sdk.images.create_variation(image=photo, n=2, extra_body={**body, "prompt": PROMPT})
    assert seeds_and_files(varied) == seeds_and_files(whole)


def pixels(b64: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(b64))).tobytes()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_stream_says_last_what_became_known_late(app: Running, sdk: OpenAI) -> None:
    prompt = "x" * 225 + " and a lighthouse"
    with sdk.images.generate(prompt=prompt, size="64x64", stream=True, extra_body=extra()) as stream:
        events: list[Any] = list(stream)  # the last is an extension
    assert isinstance(events[-2], ImageGenCompletedEvent)
    assert events[-1].type == "image_generation.warnings"
    assert "it does not see: and a lighthouse" in events[-1].warnings[0]


async def test_the_async_sdk_streams_too(async_sdk: AsyncOpenAI) -> None:
    stream = await async_sdk.images.generate(prompt=PROMPT, n=2, size="64x64", stream=True, extra_body=extra())
    assert [event.type async for event in stream] == ["image_generation.completed"] * 2


def test_closing_a_stream_early_frees_the_replicas(app: Running, sdk: OpenAI) -> None:
    body = extra(num_inference_steps=998)
    with sdk.images.generate(prompt=PROMPT, n=4, size="64x64", stream=True, partial_images=3, extra_body=body):
        eventually(lambda: sum(r.active for r in app.replicas()) == 4)
    eventually(app.idle, seconds=5)


async def test_a_client_that_hangs_up_frees_the_replicas(app: Running, async_sdk: AsyncOpenAI) -> None:
    request = asyncio.create_task(
        async_sdk.images.generate(prompt=PROMPT, n=4, size="64x64", extra_body=extra(num_inference_steps=998))
    )
    await asyncio.to_thread(eventually, lambda: sum(r.active for r in app.replicas()) == 4)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await asyncio.to_thread(eventually, app.idle, 5)


def test_bad_input_is_a_bad_request(sdk: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="multiples of 8 from 64 to 256") as raised:
        sdk.images.generate(prompt=PROMPT, size="1024x1024")
    assert (raised.value.param, raised.value.type) == ("size", "invalid_request_error")


def test_another_model_is_not_found(sdk: OpenAI) -> None:
    with pytest.raises(NotFoundError) as raised:
        sdk.images.generate(prompt=PROMPT, model="flux")
    assert raised.value.code == "model_not_found"
    assert [card.id for card in sdk.models.list()] == ["tiny"]
    assert sdk.images.generate(prompt=PROMPT, model="tiny", size="64x64", extra_body=extra()).data


def test_a_full_service_is_a_rate_limit(app: Running, sdk: OpenAI) -> None:
    """Eight are generated at once and sixteen may wait."""
    body = {"prompt": PROMPT, **SMALL, "num_images": 12, "num_inference_steps": 998}
    with (
        app.http.stream("POST", "/stream", json=body),
        app.http.stream("POST", "/stream", json=body),
        pytest.raises(RateLimitError) as raised,
    ):
        sdk.images.generate(prompt=PROMPT, size="64x64")
    assert (raised.value.code, raised.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert int(raised.value.response.headers["retry-after"]) >= 1
