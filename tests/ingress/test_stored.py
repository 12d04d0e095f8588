"""Streams and answers with URLs instead of images, for readers that cannot take long lines."""

import asyncio
import json
import math
import threading
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_app.config import FilesConfig, PreviewConfig
from serve_app.imaging import encode_preview
from serve_app.ingress import file_urls
from serve_app.ingress.api import create_api
from serve_app.messages import Generated, Slot, SlotEvent
from serve_app.schemas import PreviewEvent
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, events_of

LINE = 64 * 2**10
"""The longest line that asyncio's readers, and many others, accept."""

STREAMS = ["/stream", "/v1/images/generations", "/fal-ai/fast-sdxl/stream"]


class LargePictures(FakePool):
    """Generates pictures of a megabyte, each of its own."""

    async def generate(self, slot: Slot, replica: str = "abc", deadline: float = math.inf) -> AsyncGenerator[SlotEvent]:
        async for event in super().generate(slot, replica, deadline):
            assert isinstance(event, Generated)
            yield replace(event, b64_json=content(slot.seed))


def content(seed: int) -> str:
    return b64encode(bytes([seed % 256]) * 2**20).decode()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A service of large pictures that stores files."""
    args = ARGS.model_copy(update={"files": FilesConfig(path=str(tmp_path / "files"))})
    with TestClient(
        create_api(OneModel(LargePictures(), args, Metrics()), args), raise_server_exceptions=False
    ) as client:
        yield client


def file_at(client: TestClient, image: dict[str, Any]) -> bytes:
    response = client.get(image["url"])
    assert response.headers["content-type"] == image.get("media_type", "image/png")
    return response.content


def test_an_answer_holds_urls_in_place_of_images(client: TestClient) -> None:
    body = {"prompt": "a", "seed": 7, "num_images": 2, "width": 64, "height": 64, "grid": True}
    plain, stored = (
        client.post("/generate", json={**body, "response_format": kind}).json() for kind in ("b64_json", "url")
    )
    assert set(stored) == set(plain)
    assert stored["parameters"] == plain["parameters"]
    for one, other in zip((*stored["images"], stored["grid"]), (*plain["images"], plain["grid"]), strict=True):
        assert file_at(client, one) == b64decode(other["b64_json"])
        assert {**one, "url": ""} == {"url": "", **{key: value for key, value in other.items() if key != "b64_json"}}


def test_so_does_a_stream(client: TestClient) -> None:
    body = {
        "prompt": "a",
        "seed": 7,
        "num_images": 2,
        "width": 64,
        "height": 64,
        "grid": True,
        "response_format": "url",
    }
    events = events_of(client.post("/stream", json=body))
    images = {event["index"]: event for event in events if event["type"] == "image"}
    assert {index: file_at(client, event) for index, event in images.items()} == {
        i: b64decode(content(7 + i)) for i in range(2)
    }
    assert images[1].keys() == {
        "type",
        "index",
        "seed",
        "status",
        "width",
        "height",
        "media_type",
        "url",
        "model",
        "gpu_seconds",
        "variations",
        "parameters",
    }
    assert [event["type"] for event in events[-2:]] == ["grid", "completed"]
    assert file_at(client, events[-2]).startswith(b"\x89PNG")
    assert {event["b64_json"] for event in events if event["type"] == "preview"} == {"preview"}


async def read(stream: bytes) -> int:
    """Read a stream line by line, as asyncio's clients do; return the longest.

    Raises ValueError where one is too long.
    """
    reader = asyncio.StreamReader(limit=LINE)
    reader.feed_data(stream)
    reader.feed_eof()
    return max([len(line) async for line in reader])


@pytest.mark.parametrize("route", STREAMS)
async def test_no_line_is_long_for_a_small_reader(client: TestClient, route: str) -> None:
    body: dict[str, Any] = {"prompt": "a", "seed": 7} | {
        "/stream": {"num_images": 4, "grid": True},
        "/v1/images/generations": {"n": 4, "stream": True, "partial_images": 3},
        "/fal-ai/fast-sdxl/stream": {"num_images": 4},
    }[route]
    large: dict[str, Any] = {"sync_mode": True} if "fal" in route else {"response_format": "b64_json"}
    small: dict[str, Any] = {} if "fal" in route else {"response_format": "url"}
    with pytest.raises(ValueError, match="chunk is longer than limit"):
        await read(client.post(route, json=body | large).content)
    assert await read(client.post(route, json=body | small).content) < 2**12


def test_a_preview_of_256_pixels_fits_into_such_a_line_whatever_it_shows() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    preview = encode_preview(noise, PreviewConfig().jpeg_quality)
    event = PreviewEvent(
        index=15,
        seed=2**32 - 1,
        step=998,
        num_inference_steps=998,
        width=256,
        height=256,
        media_type="image/jpeg",
        b64_json=preview,
    )
    assert len(f"data: {event.model_dump_json()}\n") < LINE


def not_stored(index: int) -> str:
    return f"image {index} could not be stored: it is sent without a URL"


GRID_NOT_STORED = "the grid could not be stored: it is sent without a URL"


@pytest.fixture(params=["unwritable", "full", "hanging"])
def unstorable(
    request: pytest.FixtureRequest, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    """The service, once its folder takes no more files."""
    release = threading.Event()

    def full(self: Path, data: bytes) -> int:
        raise OSError(ENOSPC, "No space left on device")

    def hanging(self: Path, data: bytes) -> int:
        release.wait(60)
        return 0

    match request.param:
        case "unwritable":
            rmtree(tmp_path / "files")
        case "full":
            monkeypatch.setattr(Path, "write_bytes", full)
        case _:
            monkeypatch.setattr(file_urls, "_TIMEOUT_S", 0.05)
            monkeypatch.setattr(Path, "write_bytes", hanging)
    yield client
    release.set()


BODY = {"prompt": "a", "seed": 7, "width": 64, "height": 64, "response_format": "url"}


def test_what_cannot_be_stored_is_in_the_answer(unstorable: TestClient, tmp_path: Path) -> None:
    response = unstorable.post("/generate", json={**BODY, "num_images": 2, "grid": True})
    answer = response.json()
    assert [image["b64_json"] for image in answer["images"]] == [content(7), content(8)]
    assert b64decode(answer["grid"]["b64_json"]).startswith(b"\x89PNG")
    assert sorted(answer["warnings"]) == [not_stored(0), not_stored(1), GRID_NOT_STORED]
    assert str(tmp_path) not in response.text


def test_what_cannot_be_stored_is_in_the_stream(unstorable: TestClient) -> None:
    events = events_of(unstorable.post("/stream", json={**BODY, "num_images": 2, "grid": True}))
    assert {event["b64_json"] for event in events if event["type"] == "image"} == {content(7), content(8)}
    assert [event["type"] for event in events[-2:]] == ["grid", "completed"]
    assert b64decode(events[-2]["b64_json"]).startswith(b"\x89PNG")
    assert sorted(events[-1]["warnings"]) == [not_stored(0), not_stored(1), GRID_NOT_STORED]


def test_openais_answer_has_it_as_base64(unstorable: TestClient) -> None:
    body = {"prompt": "a", "seed": 7, "n": 2, "response_format": "url"}
    answer = unstorable.post("/v1/images/generations", json=body).json()
    assert [image["b64_json"] for image in answer["data"]] == [content(7), content(8)]
    assert sorted(answer["warnings"]) == [not_stored(0), not_stored(1)]


def test_openais_stream_has_it_as_base64(unstorable: TestClient) -> None:
    body = {"prompt": "a", "seed": 7, "n": 2, "response_format": "url", "stream": True}
    *lines, last = unstorable.post("/v1/images/generations", json=body).text.strip().split("\n\n")
    assert last == "data: [DONE]"
    events = [json.loads(line.partition("data: ")[2]) for line in lines]
    assert {event["b64_json"] for event in events if "completed" in event["type"]} == {content(7), content(8)}
    assert events[-1]["type"] == "image_generation.warnings"
    assert sorted(events[-1]["warnings"]) == [not_stored(0), not_stored(1)]


@pytest.mark.parametrize("route", ["", "/stream"])
def test_fals_answer_and_last_frame_have_it_as_data_uris(unstorable: TestClient, route: str) -> None:
    response = unstorable.post(f"/fal-ai/fast-sdxl{route}", json={"prompt": "a", "seed": 7, "num_images": 2})
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert [image["url"] for image in last["images"]] == [f"data:image/jpeg;base64,{content(i)}" for i in (7, 8)]
    assert sorted(last["warnings"]) == [not_stored(0), not_stored(1)]
