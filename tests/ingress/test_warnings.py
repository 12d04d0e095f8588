"""Warnings and refusals, and what the routes say of the service's state."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app import __version__
from serve_app.config import ModelConfig
from serve_app.fanout.deployed import Deployed
from serve_app.fanout.sight import PoolStatus
from serve_app.fanout.starts import Starts
from serve_app.ingress.api import create_api
from serve_app.messages import Slot
from serve_app.schemas import GenerateRequest, TimestepSpacing, sheet_cells
from tests.fakes import REPLICA, FakePool, Metrics, OneModel, tickets
from tests.ingress.conftest import ARGS, events_of


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"guidance_scale": 1, "negative_prompt": "dull"}, "negative_prompt has no effect"),
        ({"guidance_scale": 1}, None),
        ({"guidance_scale": 1, "guidance_rescale": 0.7}, "guidance_rescale has no effect"),
        ({"guidance_scale": 1, "negative_prompt_2": "dull"}, "negative_prompt_2 has no effect"),
        ({"prompt": "((red)), [x], BREAK", "prompt_syntax": "weighted"}, None),
        ({"prompt": "[a|b]", "prompt_syntax": "weighted"}, "prompt: read as plain words: [a|b]; only weights"),
        ({"prompt_2": "((red))"}, "prompt_2: read as plain words: ((red));"),
        ({"guidance_rescale": 0.7}, None),
        ({"negative_prompt": "dull"}, None),
        ({"output_compression": 50}, "output_compression has no effect"),
        ({"output_compression": 50, "output_format": "webp"}, None),
        ({"prompt": "a <lora:ink:0.8>"}, "prompt: read as plain words: <lora:ink:0.8>;"),
        ({"negative_prompt": "((dull))"}, "negative_prompt: read as plain words: ((dull));"),
        ({"prompt": "a cat (like this) :)"}, None),
    ],
)
def test_warnings_say_what_a_person_should_know(
    client: TestClient, change: dict[str, Any], warning: str | None
) -> None:
    body = {"prompt": "a", "num_images": 1, **change}
    start = events_of(client.post("/stream", json=body))[0]
    assert start["warnings"] == client.post("/generate", json=body).json()["warnings"]
    assert bool(start["warnings"]) == bool(warning)
    if warning:
        assert start["warnings"][0].startswith(warning)


def test_a_prompt_that_is_cut_off_is_a_warning(client: TestClient, pool: FakePool) -> None:
    pool.warnings = ("prompt is longer than the model can read; it does not see: and a dog",)
    assert client.post("/generate", json={"prompt": "a cat and a dog"}).json()["warnings"] == [*pool.warnings]
    assert events_of(client.post("/stream", json={"prompt": "a cat and a dog"}))[-1]["warnings"] == [*pool.warnings]


@pytest.mark.parametrize(
    ("spacing", "change", "warns"),
    [
        ("leading", {"num_inference_steps": 8}, True),
        ("leading", {"num_inference_steps": 9}, False),
        ("leading", {"num_inference_steps": 8, "scheduler": "dpmpp_2m_karras"}, False),
        ("trailing", {"num_inference_steps": 8}, False),
        (None, {"num_inference_steps": 8}, False),
    ],
)
def test_few_steps_that_a_distilled_model_is_not_made_for_are_a_warning(
    client: TestClient, pool: FakePool, spacing: TimestepSpacing | None, change: dict[str, Any], warns: bool
) -> None:
    model = REPLICA.model.model_copy(update={"timestep_spacing": spacing})
    pool.status = PoolStatus((replace(REPLICA, model=model),))
    answer = client.post("/generate", json={"prompt": "a", "num_images": 1, **change}).json()
    assert bool(answer["warnings"]) == warns
    assert not warns or "model.timestep_spacing: trailing" in answer["warnings"][0]
    assert answer["parameters"]["model"]["timestep_spacing"] == spacing


@pytest.mark.parametrize("route", ["/generate", "/stream"])
def test_a_scheduler_that_cannot_sample_the_model_is_refused(client: TestClient, pool: FakePool, route: str) -> None:
    pool.status = PoolStatus((replace(REPLICA, schedulers=("euler", "ddim")),))
    refused = client.post(route, json={"prompt": "a", "scheduler": "euler_a"})
    assert refused.status_code == 422
    message = "scheduler: euler_a cannot sample the served model; choose one of euler, ddim"
    assert refused.json()["error"] == {"type": "invalid_request", "message": message, "param": "scheduler"}
    assert client.post(route, json={"prompt": "a", "scheduler": "ddim"}).status_code == 200


@pytest.mark.parametrize("route", ["/generate", "/stream"])
def test_without_a_replica_it_is_a_503(client: TestClient, pool: FakePool, route: str) -> None:
    pool.status = PoolStatus()
    response = client.post(route, json={"prompt": "a"})
    assert (response.status_code, response.json()["error"]["type"]) == (503, "not_ready")
    assert response.headers["Retry-After"] == "10"


@pytest.mark.parametrize("route", ["/generate", "/stream"])
def test_a_full_queue_is_a_429_with_retry_after(client: TestClient, pool: FakePool, route: str) -> None:
    pool.status = PoolStatus((), 0.5)
    pool.status = PoolStatus((REPLICA,), 0.5)  # 4 at once and 9 waiting
    full = OneModel(pool, ARGS, Metrics())
    full._admission.join(tickets(10), lambda: None)
    with TestClient(create_api(full, ARGS)) as busy:
        response = busy.post(route, json={"prompt": "a", "num_images": 4})
        assert (response.status_code, response.json()["error"]["type"]) == (429, "too_many_waiting")
        assert response.headers["retry-after"] == "2"
        assert busy.post(route, json={"prompt": "a", "num_images": 3}).status_code == 200
        assert full._admission.unfinished == 10, "places in the queue are given back"


def test_the_deadline_with_nothing_finished_is_a_504(pool: FakePool) -> None:
    async def forever(slot: Slot) -> None:
        await asyncio.Event().wait()

    pool.before = forever
    args = ARGS.model_copy(update={"request_timeout_s": 0.1})
    with TestClient(create_api(OneModel(pool, args, Metrics()), args)) as client:
        response = client.post("/generate", json={"prompt": "a"})
        assert (response.status_code, response.json()["error"]["type"]) == (504, "deadline_exceeded")
        events = events_of(client.post("/stream", json={"prompt": "a", "num_images": 1}))
        assert [e["type"] for e in events][-2:] == ["failed", "error"]
    assert not pool.open


def test_the_deadline_with_something_finished_returns_that(pool: FakePool) -> None:
    async def second_forever(slot: Slot) -> None:
        if slot.index == 1:
            await asyncio.Event().wait()

    pool.before = second_forever
    args = ARGS.model_copy(update={"request_timeout_s": 0.2})
    with TestClient(create_api(OneModel(pool, args, Metrics()), args)) as client:
        answer = client.post("/generate", json={"prompt": "a", "num_images": 2}).json()
    assert [image["status"] for image in answer["images"]] == ["succeeded", "failed"]
    assert answer["images"][1]["error"]["type"] == "deadline_exceeded"


def test_health_says_whether_images_can_be_generated(client: TestClient, pool: FakePool) -> None:
    response = client.get("/health")
    assert (response.status_code, response.json()) == (
        200,
        {
            "status": "ready",
            "replicas": {"ready": 2, "target": 2},
            "version": __version__,
            "message": None,
            "models": {},
        },
    )
    pool.status = PoolStatus()
    response = client.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "starting")


def test_probes_leave_a_service_that_sleeps_where_requests_can_wake_it(client: TestClient, pool: FakePool) -> None:
    pool.starts = Starts(may_sleep=True)
    pool.status, pool.deployed = PoolStatus(), Deployed(replicas=0, ingresses=1, asleep=True)
    response = client.get("/health")
    assert (response.status_code, response.json()["status"]) == (200, "asleep")
    assert response.json()["replicas"] == {"ready": 0, "target": 0}
    pool.deployed = Deployed(replicas=1, ingresses=1)
    response = client.get("/health")
    assert (response.status_code, response.json()["status"]) == (200, "waking")


def test_status_says_how_busy_the_fleet_is(client: TestClient) -> None:
    assert client.get("/status").json() == {
        "replicas": {"ready": 2, "target": 2},
        "images_in_flight": 0,
        "images_waiting": 0,
        "images_per_second": 1.0,
        "models": {},
    }


def test_openapi_shows_the_limits_that_hold(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert (fields["num_images"]["maximum"], fields["num_inference_steps"]["maximum"], fields["width"]["maximum"]) == (
        9,
        50,
        512,
    )
    assert all(field["description"] for field in fields.values())
    assert {"413", "422", "429", "503"} <= set(document["paths"]["/stream"]["post"]["responses"])
    assert document["paths"]["/generate"]["post"]["responses"]["422"]["content"]["application/json"]["schema"][
        "$ref"
    ].endswith("/ErrorBody")


@pytest.mark.parametrize("path", ["/", "/health", "/status", "/playground/main.js", "/generate"])
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.content == b""


def test_a_file_longer_than_its_format_holds_is_refused_before_it_is_generated(pool: FakePool) -> None:
    large = ModelConfig(max_size=16384)
    args = ARGS.model_copy(update={"model": large, "limits": ARGS.limits.model_copy(update={"max_images": 25})})
    client = TestClient(create_api(OneModel(pool, args, Metrics()), args))
    for body, what in (
        ({"width": 16384, "num_images": 1}, "the picture would be 16384 pixels long"),
        ({"height": 4096, "num_images": 16, "grid": True}, "the grid would be 16384 pixels long"),
        ({"width": 4096, "seeds": list(range(17)), "grid": True}, "the grid would be 20480 pixels long"),
    ):
        response = client.post("/generate", json={"prompt": "a", "output_format": "webp", **body})
        assert response.status_code == 422
        problem = response.json()["error"]
        assert problem["param"] == "output_format"
        assert problem["message"] == f"output_format: {what}, but webp allows 16383; use png"
    assert not pool.slots
    fits = GenerateRequest(prompt="a", output_format="webp", width=4088, height=4088, num_images=12, grid=True)
    assert sheet_cells(fits.num_images) == (4, 3)
