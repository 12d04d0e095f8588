"""The routes over a fan-out whose pool is a fake: everything HTTP, nothing of Ray's cluster."""

import asyncio
import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve_app.errors import SlotFailed
from serve_app.fanout.sight import PoolStatus
from serve_app.messages import Slot
from serve_app.schemas import GenerateRequest
from tests.fakes import GPU_SECONDS, REPLICA, FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, events_of


def test_generate_returns_all_images_in_order(client: TestClient) -> None:
    response = client.post("/generate", json={"prompt": "a cat", "seed": 7, "num_images": 3})
    assert response.status_code == 200
    answer = response.json()
    assert set(answer) == {"id", "created", "parameters", "images", "grid", "timings", "warnings"}
    assert answer["timings"]["gpu"] == 3 * GPU_SECONDS
    assert response.headers["x-gpu-seconds"] == "1.500"
    assert answer["images"] == [
        {
            "index": i,
            "seed": 7 + i,
            "status": "succeeded",
            "width": 256,
            "height": 256,
            "media_type": "image/png",
            "b64_json": f"picture{7 + i}",
            "model": None,
            "gpu_seconds": GPU_SECONDS,
            "variations": [],
            "parameters": None,
        }
        for i in range(3)
    ]
    assert answer["parameters"] == {
        "prompt": "a cat",
        "negative_prompt": "",
        "width": 256,
        "height": 256,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
        "guidance_rescale": 0.0,
        "scheduler": "euler",
        "sigma_schedule": None,
        "loras": [],
        "embeddings": [],
        "before": [],
        "prompt_2": None,
        "negative_prompt_2": None,
        "prompt_syntax": "plain",
        "original_size": None,
        "crops_coords_top_left": [0, 0],
        "target_size": None,
        "negative_original_size": None,
        "negative_crops_coords_top_left": [0, 0],
        "negative_target_size": None,
        "init_image": None,
        "mask_image": None,
        "strength": None,
        "mask_blur": 0,
        "padding_mask_crop": None,
        "keep_outside": True,
        "output_format": "png",
        "output_compression": None,
        "model": REPLICA.model.model_dump(),
    }
    assert set(answer["timings"]) == {"queue", "encode_prompt", "denoise", "decode", "encode", "total", "gpu"}
    assert answer["grid"] is None
    assert answer["warnings"] == []


def test_generate_asks_for_no_previews(client: TestClient, pool: FakePool) -> None:
    client.post("/generate", json={"prompt": "a", "preview_every": 1})
    assert {slot.preview_steps for slot in pool.slots} == {frozenset()}


def test_four_images_where_nothing_is_said(client: TestClient) -> None:
    seeds = [image["seed"] for image in client.post("/generate", json={"prompt": "a"}).json()["images"]]
    assert [(s - seeds[0]) % 2**32 for s in seeds] == [0, 1, 2, 3]


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (5, 3, 2), (9, 3, 3)])
def test_the_grid_holds_the_pictures_untouched(client: TestClient, count: int, columns: int, rows: int) -> None:
    grid = client.post(
        "/generate", json={"prompt": "a", "num_images": count, "width": 64, "height": 72, "grid": True}
    ).json()["grid"]
    assert (grid["width"], grid["height"], grid["media_type"]) == (64 * columns, 72 * rows, "image/png")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(grid["b64_json"]))))
    for index in range(columns * rows):
        top, left = index // columns * 72, index % columns * 64
        cell = pixels[top : top + 72, left : left + 64]
        assert (cell == (index if index < count else 128)).all()


def test_a_failed_cell_is_grey(client: TestClient, pool: FakePool) -> None:
    async def second_fails(slot: Slot) -> None:
        if slot.index == 1:
            raise SlotFailed("out_of_memory", "no room")

    pool.before = second_fails
    answer = client.post(
        "/generate", json={"prompt": "a", "seed": 0, "num_images": 2, "width": 64, "height": 64, "grid": True}
    ).json()
    assert answer["images"][1] == {
        "index": 1,
        "seed": 1,
        "status": "failed",
        "error": {"type": "out_of_memory", "message": "no room"},
    }
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["grid"]["b64_json"]))))
    assert (pixels[:, :64] == 0).all()
    assert (pixels[:, 64:] == 128).all()


def test_pixels_that_were_lost_leave_a_grey_cell_and_a_warning(
    client: TestClient, pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = pool.pixels

    async def first_lost(ref: Any) -> Any:
        pixels = await kept(ref)
        return None if pixels is None or (pixels == 0).all() else pixels

    monkeypatch.setattr(pool, "pixels", first_lost)
    body = {"prompt": "a", "num_images": 2, "width": 64, "height": 64, "grid": True}
    answer, events = client.post("/generate", json=body).json(), events_of(client.post("/stream", json=body))
    assert [image["status"] for image in answer["images"]] == ["succeeded"] * 2
    assert "lacks image 0" in answer["warnings"][0]
    assert events[-2]["type"] == "grid"
    assert events[-1]["warnings"] == answer["warnings"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["grid"]["b64_json"]))))
    assert (pixels[:, :64] == 128).all()
    assert (pixels[:, 64:] == 1).all()


def test_images_are_counted_by_outcome(client: TestClient, pool: FakePool, metrics: Metrics) -> None:
    async def second_fails(slot: Slot) -> None:
        if slot.index == 1:
            raise SlotFailed("out_of_memory", "no room")

    pool.before = second_fails
    pool.status = PoolStatus((REPLICA,))
    client.post("/generate", json={"prompt": "a", "num_images": 6})
    assert sorted(metrics.outcomes) == ["failed"] + ["succeeded"] * 5
    assert metrics.most_waiting == 2


async def test_a_stream_nobody_reads_gives_its_places_back_and_counts_as_cancelled(
    pool: FakePool, metrics: Metrics
) -> None:
    service = OneModel(pool, ARGS, metrics)
    async with service.stream(GenerateRequest(prompt="a", num_images=3)):
        assert service._admission.unfinished == 3
    assert service._admission.unfinished == 0
    assert metrics.outcomes == ["cancelled"] * 3


def test_all_failed_is_a_500(client: TestClient, pool: FakePool) -> None:
    async def fail(slot: Slot) -> None:
        raise SlotFailed("out_of_memory", "no room")

    pool.before = fail
    response = client.post("/generate", json={"prompt": "a"})
    assert response.status_code == 500
    assert response.json() == {
        "error": {"type": "generation_failed", "message": "all images failed: no room", "param": None}
    }
    events = events_of(client.post("/stream", json={"prompt": "a", "num_images": 2}))
    assert [e["type"] for e in events if e["type"] in ("failed", "completed", "error")] == ["failed", "failed", "error"]
    assert events[-1] == {"type": "error", **response.json()}


def test_stream_tells_the_whole_story(client: TestClient, metrics: Metrics) -> None:
    response = client.post(
        "/stream", json={"prompt": "a cat", "seed": 7, "num_images": 2, "grid": True, "preview_steps": [1]}
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response)
    start, end = events[0], events[-1]
    assert (start["type"], start["seeds"], start["warnings"]) == ("start", [7, 8], [])
    assert start["parameters"]["prompt"] == "a cat"
    assert (end["type"], end["id"]) == ("completed", start["id"])
    assert set(end["timings"]) == {"queue", "encode_prompt", "denoise", "decode", "encode", "total", "gpu"}
    for index in range(2):
        own = [e for e in events if e.get("index") == index]
        where = {"index": index, "seed": 7 + index}
        assert own == [
            {"type": "progress", **where, "step": 1, "num_inference_steps": 20},
            {
                "type": "preview",
                **where,
                "step": 1,
                "num_inference_steps": 20,
                "width": 8,
                "height": 8,
                "media_type": "image/jpeg",
                "b64_json": "preview",
            },
            {
                "type": "image",
                **where,
                "status": "succeeded",
                "width": 256,
                "height": 256,
                "media_type": "image/png",
                "b64_json": f"picture{7 + index}",
                "model": None,
                "gpu_seconds": GPU_SECONDS,
                "variations": [],
                "parameters": None,
            },
        ]
    assert [e["type"] for e in events][-2] == "grid"
    assert len(metrics.first_previews) == 1


def test_a_busy_service_tells_the_position_in_the_queue(client: TestClient, pool: FakePool) -> None:
    async def take_a_while(_: Slot) -> None:
        await asyncio.sleep(0.1)

    pool.before = take_a_while
    pool.status = PoolStatus((REPLICA,))
    events = events_of(client.post("/stream", json={"prompt": "a", "num_images": 6}))
    queued = [(e["index"], e["position"]) for e in events if e["type"] == "queued"]
    assert queued[:2] == [(4, 1), (5, 2)]
