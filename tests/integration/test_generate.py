import base64
import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from numpy.typing import NDArray
from PIL import Image

from tests.integration.conftest import Running, worker_logs


def picture(b64: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def test_n_images_with_distinct_seeds_in_order(app: Running) -> None:
    answer = app.generate(num_images=6, seed=2**32 - 3)
    assert [i["seed"] for i in answer["images"]] == [2**32 - 3, 2**32 - 2, 2**32 - 1, 0, 1, 2]
    assert [i["index"] for i in answer["images"]] == list(range(6))
    assert len({i["b64_json"] for i in answer["images"]}) == 6
    assert all(picture(i["b64_json"]).shape == (64, 64, 3) for i in answer["images"])


def test_libraries_say_nothing_of_a_start_that_would_worry(app: Running) -> None:
    said = "".join(log.read_text() for log in worker_logs())
    assert "ready: tiny; imports" in said
    worries = r"^.*(?:\[(?:transformers|diffusers)\]|/(?:torch|transformers|diffusers)/\S+ \w*Warning: ).*$"
    assert not re.findall(worries, said, re.MULTILINE)


def test_the_pictures_are_those_of_diffusers(app: Running, stock: StableDiffusionXLPipeline) -> None:
    answer = app.generate(num_images=2, seed=11)
    for image in answer["images"]:
        expected = stock(
            "a red apple",
            width=64,
            height=64,
            num_inference_steps=4,
            guidance_scale=5.0,
            generator=torch.Generator("cpu").manual_seed(image["seed"]),
        ).images[0]
        assert np.abs(picture(image["b64_json"]).astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_pictures_that_go_on_from_a_picture(app: Running, tiny_path: Path) -> None:
    """On both replicas, which fetch the picture, they are diffusers' own; outside a mask they are the picture."""
    given = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8))
    mask = Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16))
    files = {"init_image": png_of(given), "mask_image": png_of(mask)}
    images = app.generate(num_images=4, seed=11, strength=0.6, init_image=files["init_image"])["images"]
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(tiny_path, add_watermarker=False)
    expected = pipe(
        "a red apple",
        image=given,
        strength=0.6,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(12),
    ).images[0]
    assert np.abs(picture(images[1]["b64_json"]).astype(int) - np.asarray(expected).astype(int)).max() <= 1
    *_, image, _ = app.stream(num_images=1, seed=11, **files)
    outside = np.asarray(mask) == 0
    assert np.array_equal(picture(image["b64_json"])[outside], np.asarray(given)[outside])


def png_of(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(("output_format", "pillow_format"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_every_format(app: Running, output_format: str, pillow_format: str) -> None:
    answer = app.generate(num_images=2, output_format=output_format, grid=True)
    for image in (*answer["images"], answer["grid"]):
        assert image["media_type"] == f"image/{output_format}"
        assert Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).format == pillow_format


def test_the_grid_is_the_pictures_side_by_side(app: Running) -> None:
    answer = app.generate(num_images=3, grid=True)
    sheet = picture(answer["grid"]["b64_json"])
    assert sheet.shape == (128, 128, 3)
    cells = [sheet[:64, :64], sheet[:64, 64:], sheet[64:, :64]]
    for cell, image in zip(cells, answer["images"], strict=True):
        assert np.array_equal(cell, picture(image["b64_json"]))
    assert (sheet[64:, 64:] == 128).all()


def test_timings_add_up(app: Running) -> None:
    started = time.monotonic()
    timings = app.generate(num_images=4)["timings"]
    elapsed = time.monotonic() - started
    assert all(seconds >= 0 for seconds in timings.values())
    assert timings["denoise"] > 0
    assert timings["gpu"] > 0
    parts = sum(seconds for name, seconds in timings.items() if name not in ("total", "gpu"))
    assert parts <= timings["total"] + 1e-6
    assert timings["total"] <= elapsed


def test_a_long_prompt_is_cut_with_a_warning(app: Running) -> None:
    prompt = "x" * 225 + " and a lighthouse"
    body = {"prompt": prompt, "num_images": 1, "num_inference_steps": 9}  # fewer would be a warning too
    (warning,) = app.generate(**body)["warnings"]
    assert warning.endswith("it does not see: and a lighthouse")
    assert app.stream(**body)[-1]["warnings"] == [warning]


def test_every_response_has_a_request_id(app: Running) -> None:
    for path, status in (("/health", 200), ("/nope", 404)):
        response = app.http.get(path, headers={"x-request-id": "mine"})
        assert (response.status_code, response.headers["x-request-id"]) == (status, "mine")
    assert app.http.post("/generate", json={}).headers["x-request-id"]


def test_status_and_health_of_an_idle_service(app: Running) -> None:
    status = app.http.get("/status").json()
    assert status["replicas"] == {"ready": 2, "target": 2}
    assert app.http.get("/health").json()["status"] == "ready"
