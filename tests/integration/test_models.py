"""Several models behind one ingress: of other weights and bounds, one that sleeps, and one that never starts."""

import io
import shutil
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from ray import serve
from safetensors.torch import load_file, save_file

from serve_app.metadata import embedded_parameters
from tests.cli.command import run
from tests.integration.conftest import Cluster, Running, eventually, frames, start_of, tiny_args
from tests.integration.test_changes import Changing
from tests.random_lora import save_lora

NAME = "models"
BODY = {"prompt": "a red apple", "num_inference_steps": 4, "num_images": 1, "seed": 11}
NAMES = ["plain", "bold_1.0", "asleep", "broken"]


@pytest.fixture(scope="module")
def bold_path(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights."""
    folder = Path(shutil.copytree(tiny_path, tmp_path_factory.mktemp("bold") / "model"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.1 for name, tensor in load_file(file).items()}, file)
    return folder


@pytest.fixture(scope="module")
def models(
    cluster: Cluster, tiny_path: Path, bold_path: Path, adapters_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Changing]:
    own = tmp_path_factory.mktemp("own")
    save_lora(bold_path, own / "own.safetensors", 7)
    shared = tiny_args(tiny_path, num_replicas=1, num_cpus=0.5).model_dump(mode="json", exclude_unset=True)
    del shared["model"]["name"]
    args = {
        **shared,
        "adapters": {"path": str(adapters_path)},
        "ingress_replicas": 2,  # each call may reach either
        "default_model": "plain",
        "models": {
            "bold_1.0": {
                "model": {"path": str(bold_path), "width": 72, "max_size": 128, "num_inference_steps": 3},
                "limits": {"max_images": 2},
                "adapters": {"path": str(own)},
            },
            "asleep": {"scaling": {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 0}},
            "plain": {},
            "broken": {"model": {"path": "/no/such/folder"}},
        },
    }
    url = f"{cluster.url}/{NAME}"
    with httpx2.Client(base_url=url, timeout=60) as http:
        changing = Changing(url, args, http, NAME)
        changing.deploy()
        eventually(lambda: health(changing, "plain") == health(changing, "bold_1.0") == "ready", 180, every=0.5)
        yield changing
    serve.delete(NAME, _blocking=False)


def health(models: Changing, name: str) -> str:
    return str(models.health().get("models", {}).get(name, {}).get("status"))


def pixels(b64: str) -> NDArray[np.uint8]:
    return np.asarray(Pillow.open(io.BytesIO(b64decode(b64))))


def picture(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["images"]
    return str(image["b64_json"])


def test_each_has_its_own_weights_and_a_request_that_names_none_gets_the_default(models: Changing, pair: str) -> None:
    def asked(**more: Any) -> NDArray[np.uint8]:
        return pixels(picture(models.http.post("/generate", json={**BODY, "width": 64, **more})))

    alone = pixels(picture(models.http.post(f"{pair}/generate", json=BODY)))
    with ThreadPoolExecutor(4) as pool:
        default, plain, bold, again = pool.map(
            lambda more: asked(**more), [{}, {"model": "plain"}, {"model": "bold_1.0"}, {"model": "bold_1.0"}]
        )
    assert np.array_equal(default, alone), "the bits of a service that has this model alone"
    assert np.array_equal(plain, alone)
    assert np.array_equal(bold, again)
    assert not np.array_equal(bold, alone)


def test_each_has_its_own_defaults_and_bounds(models: Changing) -> None:
    def refused(**body: Any) -> tuple[int, str]:
        answer = models.http.post("/generate", json={**BODY, **body})
        return answer.status_code, answer.json()["error"]["param"]

    answer = models.http.post("/generate", json={"prompt": "a", "model": "bold_1.0", "num_images": 1}).json()
    parameters = answer["parameters"]
    assert (parameters["width"], parameters["num_inference_steps"]) == (72, 3)
    assert models.http.post("/generate", json={**BODY, "width": 160}).status_code == 200
    assert refused(model="bold_1.0", width=160) == (422, "width")
    assert refused(model="bold_1.0", num_images=3) == (422, "num_images")
    form = {"prompt": (None, "a"), "model": (None, "bold_1.0"), "width": (None, "160")}
    assert models.http.post("/generate", files=form).json()["error"]["param"] == "width"
    assert refused(model="cubist") == (422, "model")


def test_a_picture_says_which_model_made_it(models: Changing) -> None:
    answer = models.http.post("/generate", json={**BODY, "model": "bold_1.0"})
    assert answer.json()["parameters"]["model"]["name"] == "bold_1.0"
    embedded = embedded_parameters(Pillow.open(io.BytesIO(b64decode(picture(answer)))))
    assert embedded
    assert embedded.model.name == "bold_1.0"


def test_openai_s_clients_choose(models: Changing) -> None:
    assert [card["id"] for card in models.http.get("/v1/models").json()["data"]] == NAMES

    def generated(model: str, **more: Any) -> httpx2.Response:
        body = {"prompt": "a red apple", "seed": 11, "num_inference_steps": 4, "model": model, **more}
        return models.http.post("/v1/images/generations", json=body)

    (bold,) = generated("bold_1.0", size="64x64").json()["data"]
    expected = picture(models.http.post("/generate", json={**BODY, "model": "bold_1.0", "width": 64}))
    assert np.array_equal(pixels(bold["b64_json"]), pixels(expected))
    assert (generated("bold_1.0", n=3).status_code, generated("dall-e-3", n=3).status_code) == (400, 200)
    error = generated("cubist").json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert all(f'"{name}"' in error["message"] for name in NAMES)


def test_adapters_are_each_models_own(models: Changing) -> None:
    def listed(**query: str) -> list[str]:
        return [lora["name"] for lora in models.http.get("/loras", params=query).json()]

    assert listed(model="bold_1.0") == ["own"]
    assert {"a", "b"} <= {*listed()}
    assert "own" not in listed()
    body = {**BODY, "width": 64, "loras": [{"name": "own"}]}
    with_lora = picture(models.http.post("/generate", json={**body, "model": "bold_1.0"}))
    without = picture(models.http.post("/generate", json={**body, "model": "bold_1.0", "loras": []}))
    assert not np.array_equal(pixels(with_lora), pixels(without))
    assert models.http.post("/generate", json=body).status_code == 422
    elsewhere = models.http.post("/generate", json={**body, "model": "bold_1.0", "loras": [{"name": "a"}]})
    assert "see GET /loras?model=bold_1.0" in elsewhere.json()["error"]["message"], "not where it is listed"


async def test_a_generation_is_found_and_cancelled_whichever_model_it_is_of(models: Changing) -> None:
    body = {**BODY, "model": "bold_1.0", "num_inference_steps": 998}
    async with (
        httpx2.AsyncClient(base_url=models.url, timeout=60) as client,
        client.stream("POST", "/stream", json=body) as response,
    ):
        stream = frames(response)
        id_ = await start_of(stream)
        found = [await client.get(f"/generations/{id_}") for _ in range(8)]
        assert {one.json()["parameters"]["model"]["name"] for one in found} == {"bold_1.0"}, "whichever is asked"
        assert (await client.delete(f"/generations/{id_}")).json()["cancelled"] == [0]
        assert [event["type"] async for event in stream][-1] == "completed"


def test_one_that_never_starts_keeps_no_other_from_serving(models: Changing) -> None:
    eventually(lambda: "/no/such/folder" in str(models.health()["models"]["broken"]["message"]), 60)
    answer = models.http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert "broken: " in answer.json()["message"]
    assert "bold_1.0: " not in answer.json()["message"], "it has started"
    refused = models.http.post("/generate", json={**BODY, "model": "broken"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "not_ready")
    assert models.http.post("/generate", json=BODY).status_code == 200


def test_one_sleeps_and_a_request_wakes_it_alone(models: Changing) -> None:
    eventually(lambda: health(models, "asleep") == "asleep", 60)
    assert health(models, "plain") == "ready"
    body = {**BODY, "model": "asleep"}
    assert models.http.post("/generate", json=body).status_code == 503
    eventually(lambda: models.http.post("/generate", json=body).status_code == 200, 60)


def test_metrics_say_of_which_model(models: Changing, cluster: Cluster) -> None:
    metric = Running(models.url, models.http, cluster.metrics_url).metric
    models.http.post("/generate", json={**BODY, "model": "bold_1.0"})
    labels = {"application": NAME, "outcome": "succeeded"}
    eventually(lambda: metric("ray_psdxl_images_total", model="bold_1.0", **labels) >= 1, every=1)
    assert metric("ray_psdxl_replicas_ready", application=NAME, model="broken") == 0
    assert metric("ray_psdxl_replicas_ready", application=NAME, model="bold_1.0") == 2, "each ingress replica says so"
    assert metric("ray_psdxl_images_capacity", application=NAME, deployment="Replica-bold_1.0") == 4


def test_settings_change_without_a_restart_but_for_those_of_a_models_own(models: Changing) -> None:
    def most(model: str) -> int:
        schemas = {one["name"]: one["request"] for one in models.http.get("/models").json()}
        return int(schemas[model]["properties"]["num_images"]["maximum"])

    assert (most("plain"), most("bold_1.0")) == (16, 2)
    models.deploy(limits={"max_images": 3})
    eventually(lambda: most("plain") == 3)
    assert most("bold_1.0") == 2
    assert models.http.post("/generate", json={**BODY, "num_images": 4}).status_code == 422


def test_the_command_line_chooses_and_reproduces(models: Changing, tmp_path: Path) -> None:
    options = ("-n", 1, "--seed", 7, "--size", "64x64", "--out", tmp_path, "--url", models.url)
    done = run("generate", "a red apple", "--model", "bold_1.0", *options)
    assert done.stdout.startswith("bold_1.0: 1 image of 64x64, 3 steps"), done.stderr
    picture = tmp_path / "seed-7.png"
    again = run("reproduce", picture, "--url", models.url)
    assert (again.returncode, "the same: every pixel" in " ".join(again.stdout.split())) == (0, True)
    by_another = run("reproduce", picture, "--model", "plain", "--url", models.url)
    assert by_another.returncode == 1
    assert "note: another model generated it: bold" in " ".join(by_another.stdout.split())
    unknown = run("generate", "a", "--model", "cubist", *options)
    assert unknown.returncode == 2
    assert all(name in unknown.stderr for name in ("--model", "cubist", *NAMES))


def test_one_that_did_not_start_does_once_its_settings_are_mended(models: Changing, tiny_path: Path) -> None:
    models.args["models"]["broken"] = {"model": {"path": str(tiny_path)}}
    models.deploy()
    eventually(
        lambda: health(models, "broken") == health(models, "bold_1.0") == health(models, "plain") == "ready",
        180,
        every=0.5,
    )
    names = ("broken", "bold_1.0", "plain")
    eventually(lambda: all(models.http.post("/generate", json={**BODY, "model": name}).is_success for name in names))
