"""fal's fast-sdxl API over a fake pool."""

import json
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from starlette.testclient import TestClient

from serve_app.config import FilesConfig, ModelConfig
from serve_app.errors import SlotFailed
from serve_app.fanout.sight import PoolStatus
from serve_app.ingress.api import create_api
from serve_app.messages import Slot
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, client_of
from tests.ingress.hostile import half, plain, saved

ADVICE = "weights, LoRAs and other such syntax are not read with prompt_syntax: plain"
URL = "/fal-ai/fast-sdxl"


@pytest.fixture
def large(pool: FakePool) -> Iterator[TestClient]:
    """A service of large pictures."""
    args = ARGS.model_copy(update={"model": ModelConfig(width=1024, height=1024, max_size=1024)})
    with client_of(OneModel(pool, args, Metrics()), args) as client:
        yield client


@pytest.fixture
def storing(pool: FakePool, tmp_path: Path) -> Iterator[TestClient]:
    """A service that stores files."""
    args = ARGS.model_copy(update={"files": FilesConfig(path=str(tmp_path))})
    with TestClient(create_api(OneModel(pool, args, Metrics()), args)) as client:
        yield client


def frames_of(response: Any) -> list[dict[str, Any]]:
    """Return a stream's frames, bare data as fal's are."""
    assert response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(frame.removeprefix("data: ")) for frame in response.text.strip().split("\n\n")]


NO_MORE: dict[str, Any] = {"model": None, "variations": []}


def data_uri(index: int, seed: int) -> dict[str, Any]:
    url = f"data:image/jpeg;base64,picture{seed}"
    size = {"width": 256, "height": 256}
    return {"url": url, **size, "content_type": "image/jpeg", "file_name": None, "file_size": 6} | NO_MORE


def test_the_output_has_fals_fields(client: TestClient) -> None:
    answer = client.post(URL, json={"prompt": "a cat", "num_images": 2, "seed": 7}).json()
    timings = answer.pop("timings")
    assert answer == {
        "images": [data_uri(i, 7 + i) for i in range(2)],
        "seed": 7,
        "seeds": [7, 8],
        "prompt": "a cat",
        "failures": [],
        "warnings": [],
    }
    assert {"inference", "total"} <= set(timings)
    assert all(isinstance(seconds, float) for seconds in timings.values())


def test_relatives_say_which_they_are(client: TestClient) -> None:
    variations = [{"seed": 100, "strength": 0.2}]
    answer = client.post(URL, json={"prompt": "a", "num_images": 2, "seed": 7, "variations": variations}).json()
    assert answer["seeds"] == [7, 7]
    assert [image["variations"] for image in answer["images"]] == [variations, [{"seed": 101, "strength": 0.2}]]


def test_where_nothing_is_said_the_models_defaults_hold(client: TestClient, pool: FakePool) -> None:
    nulls = dict.fromkeys(
        ("image_size", "num_inference_steps", "guidance_scale", "seed", "format", "loras", "request_id")
    )
    for body in ({"prompt": "a"}, {"prompt": "a", **nulls}):
        assert client.post(URL, json=body).status_code == 200
    assert {
        (s.recipe.width, s.recipe.height, s.recipe.num_inference_steps, s.recipe.guidance_scale, s.output.output_format)
        for s in pool.slots
    } == {(256, 256, 20, 3.0, "jpeg")}
    assert len(pool.slots) == 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("square_hd", (1024, 1024)),
        ("square", (512, 512)),
        ("portrait_4_3", (768, 1024)),
        ("portrait_16_9", (576, 1024)),
        ("landscape_4_3", (1024, 768)),
        ("landscape_16_9", (1024, 576)),
        ({"width": 640, "height": 128}, (640, 128)),
        (None, (1024, 1024)),
    ],
    ids=str,
)
def test_sizes_have_names(large: TestClient, pool: FakePool, size: Any, expected: tuple[int, int]) -> None:
    assert large.post(URL, json={"prompt": "a", "image_size": size, "sync_mode": True}).status_code == 200
    assert (pool.slots[0].recipe.width, pool.slots[0].recipe.height) == expected


@pytest.mark.parametrize(
    "body",
    [
        {"enable_safety_checker": False},
        {"safety_checker_version": "v1"},
        {"expand_prompt": False},
        {"loras": []},
        {"embeddings": []},
        {"sync_mode": True},
        {"request_id": "x"},
        {"format": "png"},
    ],
    ids=str,
)
def test_what_changes_nothing_is_accepted(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post(URL, json={"prompt": "a", **body}).status_code == 200


@pytest.mark.parametrize("route", [URL, f"{URL}/stream"])
@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"enable_safety_checker": True}, "enable_safety_checker", "not supported"),
        ({"expand_prompt": True}, "expand_prompt", "not supported"),
        ({"loras": [{"path": "x"}]}, "loras", "adapters.path is not set"),
        ({"embeddings": [{"path": "x"}]}, "embeddings", "not supported"),
        (
            {"image_size": "square_hd"},
            "image_size",
            "1024x1024 is not served; width and height must be multiples of 8 from 64 to 512",
        ),
        ({"image_size": {"width": 100, "height": 64}}, "image_size", "multiples of 8"),
        ({"image_size": "huge"}, "image_size", "square_hd"),
        ({"image_size": 512}, "image_size", ""),
        ({"num_images": 10}, "num_images", "less than or equal to 9"),
        ({"num_inference_steps": 51}, "num_inference_steps", "50"),
        ({"seed": -2}, "seed", "greater than or equal to -1"),
        ({"format": "webp"}, "format", "jpeg"),
        ({"image_url": "https://x"}, "image_url", "no such field"),
    ],
    ids=str,
)
def test_what_would_not_be_as_asked_for_is_a_422_in_fals_words(
    client: TestClient, pool: FakePool, route: str, body: dict[str, Any], field: str, says: str
) -> None:
    response = client.post(route, json={"prompt": "a", **body})
    assert response.status_code == 422
    ((fault),) = response.json()["detail"]
    assert (set(fault), fault["loc"][:2], fault["type"]) == ({"loc", "msg", "type"}, ["body", field], "invalid_request")
    assert says in fault["msg"]
    assert not pool.slots


@pytest.mark.parametrize(
    ("method", "path", "host"),
    [
        ("POST", f"{URL}?fal_webhook=https://x", "testserver"),
        ("POST", URL, "queue.example.com"),
        ("GET", f"{URL}/requests/1/status", "queue.example.com"),
        ("GET", f"{URL}/requests/1", "testserver"),
        ("PUT", f"{URL}/requests/1/cancel", "testserver"),
    ],
)
def test_what_belongs_to_a_queue_is_a_404_that_says_so(client: TestClient, method: str, path: str, host: str) -> None:
    response = client.request(method, path, headers={"host": host}, json={"prompt": "a"} if method == "POST" else None)
    assert response.status_code == 404
    assert "this service has no queue" in response.json()["detail"][0]["msg"]


def test_what_fal_does_not_have_is_taken_too(client: TestClient, pool: FakePool) -> None:
    further = {"prompt_2": "ink", "prompt_syntax": "weighted", "original_size": [512, 768]}
    assert client.post(URL, json={"prompt": "a", **further}).status_code == 200
    recipe = pool.slots[0].recipe
    assert (recipe.prompt_2, recipe.prompt_syntax, recipe.original_size) == ("ink", "weighted", (512, 768))


def test_every_other_error_is_in_fals_words(client: TestClient, pool: FakePool) -> None:
    assert client.get("/fal-ai/flux").json()["detail"][0]["type"] == "not_found"
    assert client.post(URL, json={"prompt": "a" * 600_000}).json()["detail"][0]["type"] == "payload_too_large"
    pool.status = PoolStatus()
    refused = client.post(URL, json={"prompt": "a"})
    assert (refused.status_code, refused.json()["detail"][0]["type"]) == (503, "not_ready")


def test_images_are_at_urls_unless_they_are_to_come_at_once(storing: TestClient) -> None:
    (stored,) = storing.post(URL, json={"prompt": "a", "seed": 7}).json()["images"]
    assert stored["url"] == f"http://testserver/files/{stored['file_name']}"
    assert storing.get(stored["url"]).headers["content-type"] == "image/jpeg"
    assert len(storing.get(stored["url"]).content) == stored["file_size"]
    (at_once,) = storing.post(URL, json={"prompt": "a", "sync_mode": True}).json()["images"]
    assert at_once["url"].startswith("data:image/jpeg;base64,")


async def second_fails(slot: Slot) -> None:
    if slot.index == 1:
        raise SlotFailed("out_of_memory", "no room")


async def all_fail(slot: Slot) -> None:
    raise SlotFailed("out_of_memory", "no room")


@pytest.mark.parametrize("route", ["", "/stream"])
def test_a_failed_image_is_missing_and_said_to_be(client: TestClient, pool: FakePool, route: str) -> None:
    pool.before = second_fails
    response = client.post(URL + route, json={"prompt": "a", "seed": 0, "num_images": 3})
    answer = frames_of(response)[-1] if route else response.json()
    assert (len(answer["images"]), answer["seeds"], answer["seed"]) == (2, [0, 2], 0)
    assert answer["failures"] == [{"image_index": 1, "seed": 1, "type": "out_of_memory", "message": "no room"}]


@pytest.mark.parametrize("route", ["", "/stream"])
def test_what_a_person_should_know_is_said(client: TestClient, route: str) -> None:
    response = client.post(
        URL + route, json={"prompt": "a (red:1.4) cat", "negative_prompt": "[dull]", "guidance_scale": 1}
    )
    answer = frames_of(response)[-1] if route else response.json()
    assert answer["warnings"] == [
        "negative_prompt has no effect: guidance_scale is 1 or less",
        f"prompt: read as plain words: (red:1.4); {ADVICE}",
        f"negative_prompt: read as plain words: [dull]; {ADVICE}",
    ]


def test_all_failed_is_a_500_and_the_last_frame_of_a_stream(client: TestClient, pool: FakePool) -> None:
    pool.before = all_fail
    response = client.post(URL, json={"prompt": "a"})
    assert (response.status_code, response.json()["detail"][0]["type"]) == (500, "generation_failed")
    assert frames_of(client.post(f"{URL}/stream", json={"prompt": "a"}))[-1] == response.json()


def test_a_stream_shows_previews_and_then_the_output(client: TestClient) -> None:
    *previews, last = frames_of(client.post(f"{URL}/stream", json={"prompt": "a cat", "num_images": 2, "seed": 7}))
    assert [(p["image_index"], p["seed"], p["step"]) for p in previews if p["image_index"] == 1] == [
        (1, 8, step) for step in (1, 5, 10, 15)
    ]
    assert previews[0]["images"] == [
        {
            "url": "data:image/jpeg;base64,preview",
            "width": 8,
            "height": 8,
            "content_type": "image/jpeg",
            "file_name": None,
            "file_size": 3,
            **NO_MORE,
        }
    ]
    assert (last["images"], last["seeds"], last["prompt"]) == ([data_uri(i, 7 + i) for i in range(2)], [7, 8], "a cat")


PHOTO = saved(half().resize((128, 96), Pillow.Resampling.NEAREST), "PNG")
MASK = saved(plain("L", 255, (128, 96)), "PNG")


def data_uri_of(content: bytes) -> str:
    return f"data:image/png;base64,{b64encode(content).decode()}"


FROM_PICTURE = {"prompt": "a cat", "image_url": data_uri_of(PHOTO), "num_images": 2, "seed": 7}


def test_image_to_image_goes_on_from_the_picture(client: TestClient, pool: FakePool) -> None:
    body = {**FROM_PICTURE, "strength": 0.95, "preserve_aspect_ratio": True, "crop_output": False}
    answer = client.post(f"{URL}/image-to-image", json=body).json()
    assert (answer["seeds"], answer["prompt"]) == ([7, 8], "a cat")
    first, second = pool.slots
    assert first.canvas is second.canvas
    assert (first.canvas.mask, first.recipe.strength, first.recipe.width, first.recipe.height) == (None, 0.95, 128, 96)


def test_inpainting_generates_what_is_white_in_the_mask(client: TestClient, pool: FakePool) -> None:
    body = {**FROM_PICTURE, "mask_url": data_uri_of(MASK), "image_size": {"width": 64, "height": 64}}
    *previews, last = frames_of(client.post(f"{URL}/inpainting/stream", json=body))
    assert last["seeds"] == [7, 8]
    assert previews[0]["images"][0]["content_type"] == "image/jpeg"
    (slot, _) = pool.slots
    assert (slot.canvas.mask.values == 255).all()
    assert (slot.recipe.strength, slot.recipe.width, slot.recipe.height) == (1.0, 64, 64)


def test_a_stored_file_is_found_by_its_url(storing: TestClient, pool: FakePool, tmp_path: Path) -> None:
    (tmp_path / f"{'a' * 32}.png").write_bytes(PHOTO)
    body = {**FROM_PICTURE, "image_url": f"https://images.example.com/files/{'a' * 32}.png"}
    assert storing.post(f"{URL}/image-to-image", json=body).status_code == 200
    assert pool.slots[0].recipe.init_image == f"sha256:{sha256(PHOTO).hexdigest()[:16]}"


@pytest.mark.parametrize("stream", ["", "/stream"])
@pytest.mark.parametrize(
    ("path", "fields", "field", "words"),
    [
        ("image-to-image", {"image_url": "https://example.com/a.png"}, "image_url", "nothing is fetched from other"),
        ("image-to-image", {"image_url": data_uri_of(b"x")}, "image_url", "is no picture that can be read"),
        ("image-to-image", {"image_url": None}, "image_url", "Field required"),
        ("image-to-image", {"mask_url": data_uri_of(MASK)}, "mask_url", "no such field"),
        ("image-to-image", {"strength": 0.01}, "strength", "0.01 of 20 steps is none"),
        ("image-to-image", {"crop_output": True}, "crop_output", "is not supported"),
        ("inpainting", {}, "mask_url", "Field required"),
        ("inpainting", {"mask_url": "http://10.0.0.1/"}, "mask_url", "nothing is fetched from other places; send the"),
        ("inpainting", {"mask_url": data_uri_of(saved(plain("L", 0), "PNG"))}, "mask_url", "marks nothing to generate"),
    ],
)
def test_what_is_wrong_with_a_picture_is_named_by_fals_field(
    client: TestClient, path: str, fields: dict[str, Any], field: str, words: str, stream: str
) -> None:
    response = client.post(f"{URL}/{path}{stream}", json={**FROM_PICTURE, **fields})
    (fault,) = response.json()["detail"]
    assert (response.status_code, fault["loc"], fault["type"]) == (422, ["body", field], "invalid_request")
    assert fault["msg"].startswith(f"{field}: {words}")
