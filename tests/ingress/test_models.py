"""Several models behind all APIs: which one a request names, and whose bounds it has."""

import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.config import AppArgs
from serve_app.fanout.deployed import Deployed
from serve_app.fanout.models import Models
from serve_app.fanout.sight import PoolStatus
from serve_app.fanout.starts import Starts
from serve_app.ingress.api import create_api
from serve_app.schemas import ModelInfo
from tests.fakes import REPLICA, FakePool, Metrics, NoPeers
from tests.ingress.hostile import plain, saved

SMALL_PATH = "someone/small-sdxl"
MODELS = {
    "Small": {
        "model": {"path": SMALL_PATH, "width": 64, "height": 64, "max_size": 128, "num_inference_steps": 3},
        "limits": {"max_images": 2},
    },
    "large": {"model": {"num_inference_steps": 7}},
}
ARGS = AppArgs(models=MODELS, default_model="large", limits={"max_images": 4, "max_steps": 50})
JSON = {"Content-Type": "application/json"}
PHOTO = b64encode(saved(plain(size=(64, 64)), "PNG")).decode()


def pool_of(name: str) -> FakePool:
    model = ModelInfo(name=name, revision=None, hash=f"hash-of-{name}")
    return FakePool(status=PoolStatus((replace(REPLICA, model=model),), images_per_second=1.0), models={0: model})


@dataclass(frozen=True)
class Service:
    http: TestClient
    pools: dict[str, FakePool]
    models: Models

    def made_by(self) -> dict[str, int]:
        """Return the steps of the images that each model has made since the last question."""
        made = {name: pool.slots[0].recipe.num_inference_steps for name, pool in self.pools.items() if pool.slots}
        for pool in self.pools.values():
            pool.slots.clear()
        return made


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    pools = {name: pool_of(name) for name in MODELS}
    models = Models(pools, NoPeers(), ARGS, Metrics())
    with TestClient(create_api(models, ARGS), raise_server_exceptions=False) as http:
        yield Service(http, pools, models)


OVERRIDDEN = "override_settings"
CHECKPOINT = "sd_model_checkpoint"

NATIVE = "/generate"
OPENAI = "/v1/images/generations"
FAL = "/fal-ai/fast-sdxl"
A1111 = "/sdapi/v1/txt2img"


@pytest.mark.parametrize(
    ("route", "named"),
    [
        *((NATIVE, {"model": name}) for name in ("Small", SMALL_PATH)),
        ("/stream", {"model": "Small"}),
        *((OPENAI, {"model": name}) for name in ("Small", " Small ", "openai/Small", SMALL_PATH)),
        (OPENAI, {"model": "Small", "stream": True}),
        (FAL, {"model_name": "Small"}),
        (f"{FAL}/stream", {"model_name": SMALL_PATH}),
        *((A1111, {OVERRIDDEN: {CHECKPOINT: name}}) for name in ("Small", "Small [hash-of-Small]", "hash-of-Small")),
        *(
            (A1111, {OVERRIDDEN: {CHECKPOINT: name}})
            for name in ("small", "Small [31e35c80fc]", "SDXL/Small.safetensors [31e35c80fc]", r"sdxl\small.ckpt")
        ),
        ("/sdapi/v1/img2img", {OVERRIDDEN: {CHECKPOINT: SMALL_PATH}, "init_images": [PHOTO], "denoising_strength": 1}),
    ],
)
def test_a_request_names_its_model(service: Service, route: str, named: dict[str, Any]) -> None:
    answer = service.http.post(route, json={"prompt": "a", **named})
    assert answer.status_code == 200, answer.text
    assert service.made_by() == {"Small": 3}


@pytest.mark.parametrize(
    ("route", "named"),
    [
        (NATIVE, {}),
        (NATIVE, {"model": None}),
        (OPENAI, {}),
        (OPENAI, {"model": ""}),
        (OPENAI, {"model": "dall-e-3"}),
        (FAL, {}),
        (A1111, {}),
        (A1111, {OVERRIDDEN: {CHECKPOINT: ""}}),
        (A1111, {OVERRIDDEN: None}),
    ],
)
def test_one_that_names_none_means_the_default(service: Service, route: str, named: dict[str, Any]) -> None:
    assert service.http.post(route, json={"prompt": "a", **named}).status_code == 200
    assert service.made_by() == {"large": 7}


@pytest.mark.parametrize("route", ["/v1/images/edits", "/v1/images/variations", NATIVE])
def test_a_form_names_its_model(service: Service, route: str) -> None:
    picture = {} if route == NATIVE else {"image": ("a.png", saved(plain(size=(64, 64)), "PNG"))}
    fields = {"prompt": (None, "a"), "model": (None, "Small"), "strength": (None, "1")}
    answer = service.http.post(route, files={**fields, **picture})
    assert answer.status_code == 200, answer.text
    assert service.made_by() == {"Small": 3}


@pytest.mark.parametrize(
    ("route", "named", "beyond", "param"),
    [
        (NATIVE, {"model": "Small"}, {"width": 256}, "width"),
        (NATIVE, {"model": "Small"}, {"num_images": 3}, "num_images"),
        ("/stream", {"model": "Small"}, {"seeds": [1, 2, 3]}, "seeds"),
        (OPENAI, {"model": "Small"}, {"n": 3}, "n"),
        (OPENAI, {"model": "Small"}, {"size": "256x256"}, "size"),
        (FAL, {"model_name": "Small"}, {"num_images": 3}, "num_images"),
        (FAL, {"model_name": "Small"}, {"image_size": {"width": 256, "height": 64}}, "image_size"),
        (A1111, {OVERRIDDEN: {CHECKPOINT: "Small"}}, {"width": 256}, "width"),
        (A1111, {OVERRIDDEN: {CHECKPOINT: "Small"}}, {"n_iter": 3}, "n_iter"),
    ],
)
def test_bounds_are_those_of_the_model(
    service: Service, route: str, named: dict[str, Any], beyond: dict[str, Any], param: str
) -> None:
    refused = service.http.post(route, json={"prompt": "a", **named, **beyond})
    assert refused.status_code in (400, 422)
    assert f"{param}:" in refused.text
    assert service.http.post(route, json={"prompt": "a", **beyond}).status_code == 200
    assert service.made_by() == {"large": 7}


@pytest.mark.parametrize(
    ("route", "named", "status", "param"),
    [
        (NATIVE, {"model": "small"}, 422, "model"),
        ("/stream", {"model": "Small "}, 422, "model"),
        (OPENAI, {"model": "flux"}, 404, "model"),
        (FAL, {"model_name": "flux"}, 422, "model_name"),
        (A1111, {OVERRIDDEN: {CHECKPOINT: "flux"}}, 422, f"{OVERRIDDEN}.{CHECKPOINT}"),
    ],
)
def test_one_that_is_not_served_is_refused_with_those_that_are(
    service: Service, route: str, named: dict[str, Any], status: int, param: str
) -> None:
    refused = service.http.post(route, json={"prompt": "a", **named})
    assert refused.status_code == status
    body = refused.json()
    match body:
        case {"detail": [fault]}:
            assert ".".join(fault["loc"][1:]) == param
        case {"error": {"param": told}} | {"param": told}:
            assert told == param
    assert '"large", "Small"' in refused.text.replace("\\", "")
    assert service.made_by() == {}


@pytest.mark.parametrize("wrong", [7, [], {}, "\ud83d", "x" * 10_000], ids=repr)
@pytest.mark.parametrize(("route", "field"), [(NATIVE, "model"), (OPENAI, "model"), (FAL, "model_name")])
def test_what_is_no_name_is_refused(service: Service, route: str, field: str, wrong: Any) -> None:
    refused = service.http.post(route, content=json.dumps({"prompt": "a", field: wrong}), headers=JSON)
    assert refused.status_code in (400, 404, 422)
    assert service.made_by() == {}


def test_they_are_listed_the_default_first(service: Service) -> None:
    listed = service.http.get("/models").json()
    assert [model["name"] for model in listed] == ["large", "Small"]
    assert [model["request"]["properties"]["width"]["maximum"] for model in listed] == [512, 128]
    assert [card["id"] for card in service.http.get("/v1/models").json()["data"]] == ["large", "Small"]
    cards = service.http.get("/sdapi/v1/sd-models").json()
    assert [card["title"] for card in cards] == ["large [hash-of-large]", "Small [hash-of-Small]"]
    assert service.http.get("/v1/models/Small").json()["id"] == "Small"
    assert service.http.get("/v1/models/small").status_code == 404


def test_a_setting_of_a1111_changes_no_model_for_others(service: Service) -> None:
    assert service.http.get("/sdapi/v1/options").json()[CHECKPOINT] == "large [hash-of-large]"
    assert service.http.post("/sdapi/v1/options", json={CHECKPOINT: "large"}).status_code == 200
    refused = service.http.post("/sdapi/v1/options", json={CHECKPOINT: "Small"})
    assert refused.status_code == 422
    assert f"{OVERRIDDEN} of each request" in refused.json()["detail"]


def test_whose_adapters_to_list_is_asked_by_name(service: Service) -> None:
    for route in ("/loras", "/embeddings"):
        assert service.http.get(route, params={"model": "Small"}).json() == []
        refused = service.http.get(route, params={"model": "flux"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "model")


def test_health_and_status_say_each(service: Service) -> None:
    answer = service.http.get("/health").json()
    assert (answer["status"], answer["replicas"]) == ("ready", {"ready": 2, "target": 4})
    assert {name: one["status"] for name, one in answer["models"].items()} == {"large": "ready", "Small": "ready"}
    status = service.http.get("/status").json()
    assert status["images_per_second"] == 2
    assert {one["images_per_second"] for one in status["models"].values()} == {1}


@pytest.fixture
def without_large() -> Iterator[Service]:
    pools = {"large": pool_of("large"), "Small": pool_of("Small")}
    pools["large"].status = PoolStatus()
    models = Models(pools, NoPeers(), ARGS, Metrics())
    with TestClient(create_api(models, ARGS), raise_server_exceptions=False) as http:
        yield Service(http, pools, models)


def test_one_that_does_not_run_keeps_no_other_from_serving(without_large: Service) -> None:
    http = without_large.http
    assert http.post(NATIVE, json={"prompt": "a"}).status_code == 503
    for route, named in ((NATIVE, {"model": "Small"}), (OPENAI, {"model": "Small"}), (FAL, {"model_name": "Small"})):
        assert http.post(route, json={"prompt": "a", **named}).status_code == 200
    assert http.post(A1111, json={"prompt": "a", OVERRIDDEN: {CHECKPOINT: "Small"}}).status_code == 200
    assert [card["id"] for card in http.get("/v1/models").json()["data"]] == ["large", "Small"]
    assert [card["model_name"] for card in http.get("/sdapi/v1/sd-models").json()] == ["Small"]
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("large", "small", "all_"),
    [
        ("starting", "ready", "ready"),
        ("starting", "asleep", "asleep"),
        ("asleep", "waking", "waking"),
        ("starting", "starting", "starting"),
    ],
)
def test_the_health_is_that_of_the_readiest(without_large: Service, large: str, small: str, all_: str) -> None:
    for name, state in (("large", large), ("Small", small)):
        pool = without_large.pools[name]
        pool.status = PoolStatus((REPLICA,)) if state == "ready" else PoolStatus()
        pool.starts = Starts(may_sleep=state in ("asleep", "waking"))
        if state == "waking":
            pool.starts.look(ready=False, asleep=True)
        pool.deployed = Deployed(asleep=state == "asleep", trouble="no GPU" if state == "starting" else None)
    answer = without_large.http.get("/health")
    assert answer.json()["status"] == all_
    assert answer.status_code == (503 if all_ == "starting" else 200)
    assert {name: one["status"] for name, one in answer.json()["models"].items()} == {"large": large, "Small": small}
    if large == "starting":
        assert "large: no GPU" in answer.json()["message"]


def test_looking_wakes_none_that_sleeps(without_large: Service) -> None:
    """Nor does choosing another; A1111's clients ask for the list all the time."""
    asked: list[str] = []
    large = without_large.pools["large"]
    large.starts = Starts(may_sleep=True)
    large._wake = lambda: asked.append("large")  # type: ignore[method-assign]  # as Serve would hear of it
    http = without_large.http
    for route in ("/models", "/v1/models", "/sdapi/v1/sd-models", "/loras?model=large", "/health", "/status"):
        assert http.get(route).status_code == 200
    http.post(A1111, json={"prompt": "a", OVERRIDDEN: {CHECKPOINT: "Small"}})
    http.post(NATIVE, json={"prompt": "a", "model": "Small"})
    assert asked == []
    assert http.post(NATIVE, json={"prompt": "a"}).status_code == 503
    assert asked


async def test_a_drain_is_of_all_models(without_large: Service) -> None:
    await without_large.models.generations.drain(0)
    assert without_large.http.get("/health").json()["status"] == "stopping"
    answer = without_large.http.post(NATIVE, json={"prompt": "a", "model": "Small"})
    assert answer.json()["error"]["type"] == "shutting_down"


def test_the_queue_of_one_holds_up_no_other(service: Service) -> None:
    """One that is full refuses, the other takes."""
    small = service.models.of("Small")._admission
    most, small.max_waiting = small.max_waiting, -100
    try:
        assert service.http.post(NATIVE, json={"prompt": "a", "model": "Small"}).status_code == 429
        assert service.http.post(NATIVE, json={"prompt": "a"}).status_code == 200
    finally:
        small.max_waiting = most
        service.made_by()
