"""Edits and variations of the OpenAI Images API over a fake pool, by OpenAI's SDK and by hand."""

from base64 import b64encode
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent
from PIL import Image as Pillow
from starlette.testclient import TestClient

from serve_app.errors import SlotFailed
from serve_app.messages import Slot
from tests.clients.bodies import LIBRECHAT_EDIT, OPEN_WEBUI_EDIT
from tests.fakes import FakePool
from tests.ingress.conftest import LIMITS
from tests.ingress.hostile import half, plain, saved

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"
PHOTO = saved(half().resize((128, 96), Pillow.Resampling.NEAREST), "PNG")


def cut(alpha: int = 0) -> bytes:
    """A picture whose left quarter is transparent."""
    picture = plain("RGBA", (9, 9, 9, 255), (128, 96))
    picture.paste((9, 9, 9, alpha), (0, 0, 32, 96))
    return saved(picture, "PNG")


@pytest.fixture
def sdk(client: TestClient) -> OpenAI:
    return OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0)


def refusal(client: TestClient, path: str = EDITS, **request: Any) -> tuple[str | None, str]:
    response = client.post(path, **request)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error["param"], error["message"]


def test_an_edit_goes_on_from_the_picture_at_its_size(sdk: OpenAI, pool: FakePool) -> None:
    answer = sdk.images.edit(image=PHOTO, prompt="a cat", n=2, extra_body={"seed": 7})
    assert (answer.size, [item.b64_json for item in answer.data or ()]) == ("128x96", ["picture7", "picture8"])
    first, second = pool.slots
    assert first.canvas is second.canvas
    assert np.array_equal(first.canvas.image.values, np.asarray(half().resize((128, 96), Pillow.Resampling.NEAREST)))
    assert (first.recipe.prompt, first.recipe.strength, first.canvas.mask) == ("a cat", 0.6, None)


def test_what_the_mask_leaves_transparent_is_generated(sdk: OpenAI, pool: FakePool) -> None:
    sdk.images.edit(image=[("photo.png", PHOTO, "image/png")], mask=cut(), prompt="a")
    mask = pool.slots[0].canvas.mask.values
    assert (mask[:, :32] == 255).all()
    assert (mask[:, 32:] == 0).all()
    assert pool.slots[0].recipe.strength == 1.0


def test_what_is_asked_for_is_what_is_generated(sdk: OpenAI, pool: FakePool) -> None:
    answer = sdk.images.edit(
        image=PHOTO,
        prompt="a",
        size="256x256",
        model="gpt-image-1",
        output_format="webp",
        output_compression=80,
        response_format="b64_json",
        quality="high",
        input_fidelity="high",
        user="me",
        extra_body={
            "seeds": [5, 9],
            "strength": 0.25,
            "num_inference_steps": 12,
            "guidance_scale": 4.5,
            "keep_outside": False,
            "negative_prompt": "dull",
        },
    )
    assert (answer.size, answer.output_format) == ("256x256", "webp")
    slot, other = pool.slots
    assert (slot.seed, other.seed, slot.recipe.width, slot.output.output_compression) == (5, 9, 256, 80)
    recipe = slot.recipe
    assert (recipe.strength, recipe.num_inference_steps, recipe.guidance_scale) == (0.25, 12, 4.5)
    assert (recipe.negative_prompt, recipe.keep_outside) == ("dull", False)


def test_a_stream_has_the_events_of_edits(sdk: OpenAI, pool: FakePool) -> None:
    body = {"seed": 7, "strength": 0.4}
    with sdk.images.edit(image=PHOTO, prompt="a", n=2, stream=True, partial_images=3, extra_body=body) as stream:
        events: list[Any] = [event for event in stream if event.image_index == 1]  # type: ignore[union-attr]  # an extension
    *partials, completed = events
    assert all(isinstance(partial, ImageEditPartialImageEvent) for partial in partials)
    assert [(partial.partial_image_index, partial.step) for partial in partials] == [(0, 14), (1, 16), (2, 18)]
    assert isinstance(completed, ImageEditCompletedEvent)
    assert (completed.b64_json, completed.seed, completed.size) == ("picture8", 8, "128x96")  # type: ignore[attr-defined]  # an extension


def test_a_failed_image_has_an_event_of_edits_too(sdk: OpenAI, pool: FakePool) -> None:
    async def second_fails(slot: Slot) -> None:
        if slot.index == 1:
            raise SlotFailed("out_of_memory", "no room")

    pool.before = second_fails
    with sdk.images.edit(image=PHOTO, prompt="a", n=2, stream=True) as stream:
        assert {event.type for event in stream} == {"image_edit.completed", "image_edit.failed"}


def test_a_variation_needs_no_prompt(sdk: OpenAI, pool: FakePool) -> None:
    with pytest.deprecated_call():
        answer = sdk.images.create_variation(image=PHOTO, n=2, size="256x256", response_format="b64_json")
    assert len(answer.data or ()) == 2
    recipe = pool.slots[0].recipe
    assert (recipe.prompt.strip(), recipe.strength, recipe.width) == ("", 0.6, 256)
    assert recipe.init_image


@pytest.mark.parametrize(
    ("form", "name", "size"),
    [
        (OPEN_WEBUI_EDIT, "image", "512x512"),
        (OPEN_WEBUI_EDIT, "image[]", "512x512"),
        (LIBRECHAT_EDIT, "image[]", "128x96"),
    ],
)
def test_what_chat_programs_send_to_edit_a_picture(
    client: TestClient, form: dict[str, str], name: str, size: str
) -> None:
    files = {name: ("generated-image.png", PHOTO, "image/png")}
    answer = client.post(f"{EDITS}?api-version=2025-04-01-preview", data=form, files=files)
    assert answer.status_code == 200, answer.text
    (picture,) = answer.json()["data"]
    assert (picture["b64_json"], answer.json()["size"]) == (f"picture{picture['seed']}", size)


def test_more_than_one_picture_is_refused(sdk: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="more than one picture is not supported; send one") as raised:
        sdk.images.edit(image=[PHOTO, PHOTO], prompt="a")
    assert raised.value.param == "image"


PNG = ("photo.png", PHOTO, "image/png")


@pytest.mark.parametrize(
    ("files", "data", "param", "words"),
    [
        ({}, {"prompt": "a"}, "image", "image: Field required"),
        ({"image": PNG, "other": PNG}, {"prompt": "a"}, "other", "other: is sent as a file; only image and mask may"),
        ({"image": PNG, "n": ("n.txt", b"2")}, {"prompt": "a"}, "n", "n: is sent as a file; only image and mask may"),
        ({"image": PNG}, {}, "prompt", "prompt: Field required"),
        ({"image": ("a.txt", b"hello", "text/plain")}, {"prompt": "a"}, "image", "image: is no picture that can be"),
        ({"image": ("a.png", b"", "image/png")}, {"prompt": "a"}, "image", "image: the file is empty"),
        ({"image": PNG, "mask": ("m.png", b"x")}, {"prompt": "a"}, "mask", "mask: is no picture that can be read"),
        ({"image": PNG, "mask": PNG}, {"prompt": "a"}, "mask", "mask: is nowhere transparent; it must be"),
        ({"image": PNG}, {"prompt": "a", "n": "10"}, "n", "n: Input should be less than or equal to 9"),
        ({"image": PNG}, {"prompt": "a", "n": "two"}, "n", "n: Input should be a valid integer"),
        ({"image": PNG}, {"prompt": "a", "size": "7x7"}, "size", "size: 7x7 is not served"),
        ({"image": PNG}, {"prompt": "a", "steps": "7"}, "steps", "steps: no such field"),
        ({"image": PNG}, {"prompt": "a", "init_image": "x"}, "init_image", "init_image: no such field"),
        ({"image": PNG}, {"prompt": "a", "strength": "0.01"}, "strength", "strength: 0.01 of 20 steps is none"),
        ([("image", PNG), ("image[]", PNG)], {"prompt": "a"}, "image", "image: more than one picture is not supported"),
        ({"image": PNG}, {"prompt": ["a", "b"]}, "prompt", "prompt: is sent more than once"),
        ({"image": PNG}, {"prompt": "a", "background": "transparent"}, "background", "background: transparent is not"),
        ({"image": PNG}, {"prompt": "a", "partial_images": "1"}, "partial_images", "partial_images: needs stream"),
    ],
)
def test_what_is_wrong_is_named_by_its_field(
    client: TestClient, files: Any, data: dict[str, Any], param: str, words: str
) -> None:
    found, message = refusal(client, files=files or {"nothing": ("", b"")}, data=data)
    assert (found, message[: len(words)]) == (param, words)


def test_a_picture_may_also_be_a_text(client: TestClient, pool: FakePool) -> None:
    """As in our own requests: base64, a data URI, or a stored file."""
    data = {"prompt": "a", "image": f"data:image/png;base64,{b64encode(PHOTO).decode()}", "negative_prompt": ""}
    assert client.post(EDITS, data=data, files={"mask": cut()}).status_code == 200
    assert (pool.slots[0].recipe.width, pool.slots[0].recipe.negative_prompt) == (128, "")
    param, message = refusal(client, data={**data, "image": "http://10.0.0.1/a.png"}, files={"mask": cut()})
    assert (param, message) == ("image", "image: nothing is fetched from other places; send the picture itself")


@pytest.mark.parametrize("path", [EDITS, VARIATIONS])
def test_what_is_no_form_is_refused(client: TestClient, path: str) -> None:
    assert refusal(client, path, json={"prompt": "a"}) == (
        None,
        "the body must be a form, sent with Content-Type: multipart/form-data, not as application/json",
    )
    assert refusal(client, path) == (None, "the body must be a form, sent with Content-Type: multipart/form-data")
    for kind, body in (("multipart/form-data", b"x"), ("multipart/form-data; boundary=a", b"--b\r\n\r\nx")):
        _, message = refusal(client, path, content=body, headers={"Content-Type": kind})
        assert message.startswith("the body cannot be read as multipart/form-data: ")


def test_the_limits_of_bodies_hold_for_forms(client: TestClient) -> None:
    large = client.post(EDITS, data={"prompt": "a"}, files={"image": b"a" * LIMITS.max_body_bytes})
    assert (large.status_code, large.json()["error"]["code"]) == (413, "payload_too_large")
    packed = client.post(EDITS, files={"image": PHOTO}, data={"prompt": "a"}, headers={"Content-Encoding": "gzip"})
    assert (packed.status_code, packed.json()["error"]["code"]) == (415, "unsupported_media_type")
