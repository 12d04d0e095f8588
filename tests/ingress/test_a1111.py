"""A1111's API over a fake pool, with the bodies that chat programs send."""

import asyncio
import json
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

from serve_app.config import A1111Config, ModelConfig
from serve_app.errors import SlotFailed
from serve_app.ingress.a1111.answers import png_info_of
from serve_app.ingress.api import create_api
from serve_app.messages import Slot
from tests.clients.bodies import LIBRECHAT, OPEN_WEBUI, SILLYTAVERN
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, client_of
from tests.ingress.hostile import half, plain, saved

TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
PHOTO = b64encode(saved(half().resize((128, 96), Pillow.Resampling.NEAREST), "PNG")).decode()
MASK = b64encode(saved(plain("L", 255, (128, 96)), "PNG")).decode()
TITLE = "fake [0123456789]"


@pytest.fixture
def large(pool: FakePool) -> Iterator[TestClient]:
    """A service of large pictures."""
    args = ARGS.model_copy(update={"model": ModelConfig(width=1024, height=1024, max_size=1024)})
    with client_of(OneModel(pool, args, Metrics()), args) as client:
        yield client


def answer(client: TestClient, path: str = TXT2IMG, **body: Any) -> tuple[list[str], dict[str, Any]]:
    response = client.post(path, json={"prompt": "a", **body})
    assert response.status_code == 200, response.text
    return response.json()["images"], json.loads(response.json()["info"])


def refusal(client: TestClient, path: str = TXT2IMG, **body: Any) -> tuple[str | None, str]:
    response = client.post(path, json={"prompt": "a", **body})
    assert response.status_code == 422, response.text
    told = response.json()
    assert told["error"] == "invalid_request"
    assert told["errors"] == told["detail"]
    return told["param"], told["detail"]


def test_what_open_webui_sends(large: TestClient, pool: FakePool) -> None:
    images, info = answer(large, **OPEN_WEBUI)
    assert len(images) == len(set(images)) == len(info["all_seeds"]) == 2
    recipe = pool.slots[0].recipe
    assert (recipe.width, recipe.num_inference_steps, recipe.negative_prompt) == (512, 30, "dull")
    assert info["warnings"] == []


def test_how_open_webui_chooses_the_model(client: TestClient) -> None:
    options = client.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == TITLE
    (model,) = client.get("/sdapi/v1/sd-models").json()
    assert (model["title"], model["model_name"]) == (TITLE, "fake")
    for name in (TITLE, "fake", "0123456789"):
        assert client.post("/sdapi/v1/options", json={**options, "sd_model_checkpoint": name}).status_code == 200
    refused = client.post("/sdapi/v1/options", json={**options, "sd_model_checkpoint": "other"})
    assert (refused.status_code, refused.json()["param"]) == (422, "sd_model_checkpoint")


def test_what_librechat_sends_and_reads(large: TestClient, pool: FakePool) -> None:
    (image,), info = answer(large, **LIBRECHAT)
    assert (info["height"], info["width"], f"picture{info['seed']}") == (1024, 1024, image)
    prompt, negative, last = info["infotexts"][0].split("\n")
    assert (prompt, negative) == ("a cat", "Negative prompt: blurry")
    assert last.startswith(f"Steps: 22, Sampler: Euler, CFG scale: 4.5, Seed: {info['seed']}, Size: 1024x1024")
    assert pool.slots[0].recipe.guidance_scale == 4.5


def test_what_sillytavern_sends(large: TestClient, pool: FakePool) -> None:
    images, info = answer(large, **SILLYTAVERN)
    assert (images, info["seed"], info["sampler_name"]) == (["picture7"], 7, "DPM++ 2M")
    assert info["extra_generation_params"] == {"Schedule type": "Karras"}
    assert info["warnings"] == []
    recipe = pool.slots[0].recipe
    assert (recipe.scheduler, recipe.sigma_schedule) == ("dpmpp_2m", "karras")
    assert "password" not in large.post(TXT2IMG, json=SILLYTAVERN).text


def test_what_sillytavern_asks_for(client: TestClient) -> None:
    names = {
        path: [item["name"] for item in client.get(f"/sdapi/v1/{path}").json()] for path in ("samplers", "upscalers")
    }
    assert {"Euler", "Euler a", "DPM++ 2M", "DPM++ 2M Karras", "DDIM", "UniPC"} < {*names["samplers"]}
    assert names["upscalers"] == ["None"]
    assert [item["label"] for item in client.get("/sdapi/v1/schedulers").json()] == [
        "Automatic",
        "Karras",
        "Exponential",
        "Beta",
        "SGM Uniform",
        "Align Your Steps",
    ]
    for path in ("latent-upscale-modes", "sd-vae", "loras"):
        assert client.get(f"/sdapi/v1/{path}").json() == []
    progress = client.get("/sdapi/v1/progress").json()
    assert (progress["progress"], progress["state"]["job_count"]) == (0.0, 0)


@pytest.mark.parametrize(
    ("sampler", "schedule", "ours", "said"),
    [
        ("DPM++ 2M Karras", None, ("dpmpp_2m_karras", None), "DPM++ 2M, Schedule type: Karras"),
        ("DPM++ 2M", "karras", ("dpmpp_2m", "karras"), "DPM++ 2M, Schedule type: Karras"),
        ("DPM++ 2M SDE", "Automatic", ("dpmpp_2m_sde", None), "DPM++ 2M SDE"),
        ("DPM++ 2M SDE Exponential", None, ("dpmpp_2m_sde", "exponential"), "DPM++ 2M SDE, Schedule type: Exponential"),
        ("DPM++ 3M SDE Karras", "Beta", ("dpmpp_3m_sde", "beta"), "DPM++ 3M SDE, Schedule type: Beta"),
        ("DPM++ SDE", "Align Your Steps", ("dpmpp_sde", "align_your_steps"), "DPM++ SDE, Schedule type: Align Your"),
        ("Euler a", "SGM Uniform", ("euler_a", "sgm_uniform"), "Euler a, Schedule type: SGM Uniform"),
        ("k_lms", None, ("lms", None), "LMS"),
        ("PLMS", "", ("pndm", None), "PLMS"),
        ("lcm", None, ("lcm", None), "LCM"),
        (None, "exponential", ("euler", "exponential"), "Euler, Schedule type: Exponential"),
    ],
)
def test_samplers_and_schedules_have_a1111s_names(
    client: TestClient, pool: FakePool, sampler: str | None, schedule: str | None, ours: tuple[str, str], said: str
) -> None:
    _, info = answer(client, sampler_name=sampler, scheduler=schedule)
    recipe = pool.slots[0].recipe
    assert (recipe.scheduler, recipe.sigma_schedule) == ours
    assert f"Sampler: {said}" in info["infotexts"][0]


def test_prompts_have_weights(client: TestClient, pool: FakePool) -> None:
    _, info = answer(client, prompt="a (cat:1.3) [dull] BREAK {x|y}", prompt_2="ink", original_size=[512, 512])
    recipe = pool.slots[0].recipe
    assert (recipe.prompt_syntax, recipe.prompt_2, recipe.original_size) == ("weighted", "ink", (512, 512))
    assert info["warnings"] == ["prompt: read as plain words: {x|y}; only weights and BREAK are read"]
    assert ", Emphasis: No norm, " in info["infotexts"][0]


def test_batches_fan_out_with_consecutive_seeds(client: TestClient, pool: FakePool) -> None:
    images, info = answer(client, n_iter=3, batch_size=2, seed=7)
    assert images == [f"picture{seed}" for seed in range(7, 13)]
    assert info["all_seeds"] == list(range(7, 13))
    assert answer(client, seed=-1)[1]["seed"] != answer(client, seed=-1)[1]["seed"]


def test_img2img_goes_on_from_the_picture(client: TestClient, pool: FakePool) -> None:
    _, info = answer(client, IMG2IMG, init_images=[f"data:image/png;base64,{PHOTO}"], denoising_strength=0.75)
    recipe = pool.slots[0].recipe
    assert (recipe.width, recipe.height, recipe.strength, pool.slots[0].canvas.mask) == (128, 96, 0.75, None)
    assert info["denoising_strength"] == 0.75
    told = client.post(IMG2IMG, json={"prompt": "a", "init_images": [PHOTO]}).json()["parameters"]
    assert (told["prompt"], "init_images" in told) == ("a", False)
    assert "Denoising strength: 0.75" in info["infotexts"][0]


def test_a_mask_is_used_as_a1111_does(client: TestClient, pool: FakePool) -> None:
    answer(client, IMG2IMG, init_images=[PHOTO], mask=MASK, width=64, height=64)
    answer(client, IMG2IMG, init_images=[PHOTO], mask=MASK, mask_blur=0, inpaint_full_res=False)
    first, second = (slot.recipe for slot in pool.slots)
    assert (first.mask_blur, first.padding_mask_crop, first.width) == (4, 0, 64)
    assert (second.mask_blur, second.padding_mask_crop) == (0, None)
    assert first.mask_image == second.mask_image


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        (TXT2IMG, {"prompt": None}, "prompt", "Field required"),
        (TXT2IMG, {"steps": 51}, "steps", "Input should be less than or equal to 50"),
        (TXT2IMG, {"width": 63}, "width", "Input should be"),
        (TXT2IMG, {"n_iter": 5, "batch_size": 2}, "n_iter", "n_iter x batch_size is 10, and must be at most 9"),
        (TXT2IMG, {"sampler_name": "DPM fast"}, "sampler_name", "DPM fast is not one of Euler, Euler a"),
        (TXT2IMG, {"scheduler": "KL Optimal"}, "scheduler", "KL Optimal is not one of Automatic, Karras, Exponential"),
        (TXT2IMG, {"sampler_name": "DDIM", "scheduler": "Karras"}, "scheduler", "ddim cannot follow karras; it takes"),
        (TXT2IMG, {"sampler_name": "LCM", "steps": 50, "scheduler": "beta"}, "scheduler", "lcm cannot follow beta"),
        (TXT2IMG, {"enable_hr": True}, "enable_hr", "is not supported; leaving it out would change the picture"),
        (TXT2IMG, {"alwayson_scripts": {"ADetailer": {}}}, "alwayson_scripts", "is not supported"),
        (TXT2IMG, {"override_settings": {"sd_vae": "x"}}, "override_settings.sd_vae", "cannot be changed here; it is"),
        (
            TXT2IMG,
            {"override_settings": {"sd_model_checkpoint": "b"}},
            "override_settings.sd_model_checkpoint",
            '"b" is not served here; choose one of "fake"',
        ),
        (TXT2IMG, {"override_settings": {"x": 1}}, "override_settings.x", "cannot be changed here; there is no such"),
        (IMG2IMG, {}, "init_images", "Field required"),
        (IMG2IMG, {"init_images": [PHOTO, PHOTO]}, "init_images", "at most 1 may be given, not 2"),
        (IMG2IMG, {"init_images": ["x"]}, "init_images", "is neither base64 nor a data URI"),
        (IMG2IMG, {"init_images": ["http://10.0.0.1/a.png"]}, "init_images", "nothing is fetched from other places"),
        (IMG2IMG, {"init_images": [PHOTO], "mask": "a.b"}, "mask", "is neither base64 nor a data URI"),
        (IMG2IMG, {"init_images": [PHOTO], "denoising_strength": 0.01}, "denoising_strength", "0.01 of 20 steps is"),
        (IMG2IMG, {"init_images": [PHOTO], "sampler_name": "PLMS"}, "sampler_name", "pndm cannot go on from a picture"),
        (IMG2IMG, {"init_images": [PHOTO], "inpainting_mask_invert": 1}, "inpainting_mask_invert", "is not supported"),
        ("/sdapi/v1/png-info", {"prompt": None, "image": "?"}, "image", "is neither base64 nor a data URI"),
    ],
)
def test_what_cannot_be_served_is_named_by_its_field(
    client: TestClient, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    found, message = refusal(client, path, **body)
    assert (found, message.startswith(f"{param}: {words}")) == (param, True), message


def test_unknown_fields_are_warned_of(client: TestClient) -> None:
    assert answer(client, stepz=3)[1]["warnings"] == ["stepz has no effect: no such field"]


def test_noise_of_samplers_is_as_a1111_has_it(client: TestClient) -> None:
    """Some clients send A1111's usual `eta` whatever the sampler."""
    assert answer(client, eta=1.0, sampler_name="Euler a")[1]["warnings"] == []
    assert answer(client, eta=1.0)[1]["warnings"] == []
    assert answer(client, eta=0, sampler_name="DDIM")[1]["warnings"] == []
    for sampler, eta in (("DDIM", 1.0), ("Euler a", 0.5)):
        param, message = refusal(client, eta=eta, sampler_name=sampler)
        assert (param, message) == ("eta", "eta: is not supported; leaving it out would change the picture")


def test_a_failed_image_is_left_out_and_said_why(client: TestClient, pool: FakePool) -> None:
    async def second_fails(slot: Slot) -> None:
        if slot.index == 1:
            raise SlotFailed("out_of_memory", "no room")

    pool.before = second_fails
    images, info = answer(client, batch_size=3, seed=7)
    assert (images, info["all_seeds"], len(info["infotexts"])) == (["picture7", "picture9"], [7, 9], 2)
    assert info["failures"] == [{"image_index": 1, "seed": 8, "type": "out_of_memory", "message": "no room"}]

    async def fails(slot: Slot) -> None:
        raise SlotFailed("out_of_memory", "no room")

    pool.before = fails
    response = client.post(TXT2IMG, json={"prompt": "a"})
    assert (response.status_code, response.json()["error"]) == (500, "generation_failed")


@pytest.fixture
def halfway(client: TestClient, pool: FakePool) -> Iterator[Callable[[], dict[str, Any]]]:
    """The first of two images is finished, the second hangs; call it to interrupt this, and for the answer."""

    async def second_hangs(slot: Slot) -> None:
        if slot.index == 1:
            await asyncio.Event().wait()

    def interrupted() -> dict[str, Any]:
        assert client.post("/sdapi/v1/interrupt").json() == {}
        told: dict[str, Any] = running.result().json()
        return told

    pool.before = second_hangs
    with ThreadPoolExecutor() as threads:
        running = threads.submit(client.post, TXT2IMG, json={"prompt": "a", "batch_size": 2, "seed": 7})
        until = time.monotonic() + 10
        while client.get("/sdapi/v1/progress").json()["state"]["job_no"] != 1 and time.monotonic() < until:
            time.sleep(0.01)
        yield interrupted
        if not running.done():
            interrupted()


def test_progress_shows_the_picture_that_is_forming(client: TestClient, halfway: Callable[[], dict[str, Any]]) -> None:
    told = client.get("/sdapi/v1/progress", params={"skip_current_image": False}).json()
    assert (told["progress"], told["state"]["job_count"], told["state"]["sampling_steps"]) == (0.525, 2, 20)
    assert told["current_image"] == "preview"
    assert client.get("/sdapi/v1/progress?skip_current_image=true").json()["current_image"] is None
    refused = client.get("/sdapi/v1/progress?skip_current_image=no+picture")
    assert (refused.status_code, refused.json()["param"]) == (422, "skip_current_image")
    halfway()
    told = client.get("/sdapi/v1/progress").json()
    assert (told["progress"], told["current_image"]) == (0, None)


def test_an_interrupted_request_ends_with_what_there_is(halfway: Callable[[], dict[str, Any]]) -> None:
    told = halfway()
    info = json.loads(told["info"])
    assert told["images"] == ["picture7", "preview"]
    assert (info["all_seeds"], len(info["infotexts"]), info["failures"][0]["type"]) == ([7, 8], 2, "cancelled")
    assert info["warnings"] == ["images.1: was interrupted; this is a preview after step 15 of 20"]


def test_png_info_tells_the_text_in_a_picture(client: TestClient) -> None:
    text = 'a "cat"\nNegative prompt: dull\nSteps: 20, Sampler: Euler a, Model: "x, y", Size: 512x512'
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    body = {"image": b64encode(saved(plain(), "PNG", pnginfo=chunks)).decode()}
    told = client.post("/sdapi/v1/png-info", json=body).json()
    assert (told["info"], told["items"]) == (text, {"parameters": text})
    assert told["parameters"] == {
        "Prompt": 'a "cat"',
        "Negative prompt": "dull",
        "Steps": "20",
        "Sampler": "Euler a",
        "Model": '"x, y"',
        "Size": "512x512",
    }
    nothing = client.post("/sdapi/v1/png-info", json={"image": PHOTO}).json()
    assert nothing == {"info": "", "items": {}, "parameters": {}}


def test_a_text_made_to_take_long_does_not() -> None:
    for text in ("a b-" * 50_000, " " * 200_000, 'a1:"' * 50_000, 'a1:"' * 1900):
        started = time.monotonic()
        assert png_info_of(text).info == text
        assert time.monotonic() - started < 2


def test_it_can_be_switched_off(pool: FakePool) -> None:
    args = ARGS.model_copy(update={"a1111": A1111Config(enabled=False)})
    with TestClient(create_api(OneModel(pool, args, Metrics()), args)) as client:
        assert client.get("/sdapi/v1/options").status_code == 404
        assert client.post(TXT2IMG, json={"prompt": "a"}).json()["error"] == "not_found"


def test_a_variation_seed(client: TestClient, pool: FakePool) -> None:
    images, info = answer(client, seed=7, subseed=100, subseed_strength=0.2, batch_size=2, n_iter=2)
    assert len(images) == 4
    assert (info["all_seeds"], info["all_subseeds"]) == ([7] * 4, [100, 101, 102, 103])
    assert (info["seed"], info["subseed"], info["subseed_strength"]) == (7, 100, 0.2)
    assert "Seed: 7, " in info["infotexts"][2]
    assert "Variation seed: 102, Variation seed strength: 0.2" in info["infotexts"][2]
    assert [slot.variations[0].seed for slot in pool.slots] == [100, 101, 102, 103]


def test_without_a_strength_a_variation_seed_has_no_effect(client: TestClient, pool: FakePool) -> None:
    _, info = answer(client, seed=7, subseed=100, subseed_strength=0, batch_size=2)
    assert (info["all_seeds"], info["all_subseeds"], info["subseed_strength"]) == ([7, 8], [7, 8], 0)
    assert "Variation" not in info["infotexts"][0]
    assert refusal(client, subseed_strength=1.5)[0] == "subseed_strength"
    assert refusal(client, subseed=-2, subseed_strength=0.1)[0] == "subseed"
