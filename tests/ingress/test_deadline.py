"""A client's own deadline, in every dialect."""

import asyncio
import json
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.ingress.api import create_api
from serve_app.messages import Slot
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, client_of

ROUTES = [
    "/generate",
    "/stream",
    "/v1/images/generations",
    "/v1 stream",
    "/fal-ai/fast-sdxl",
    "/fal-ai/fast-sdxl/stream",
]


async def only_the_first(slot: Slot) -> None:
    if slot.index:
        await asyncio.Event().wait()


async def none(slot: Slot) -> None:
    await asyncio.Event().wait()


@pytest.fixture
def client(pool: FakePool) -> Iterator[TestClient]:
    args = ARGS.model_copy(update={"request_timeout_s": 20.0})
    with client_of(OneModel(pool, args, Metrics()), args) as client:
        yield client


def ask(client: TestClient, route: str, **body: Any) -> Any:
    """Send a request for two images in a route's own words; return the response."""
    own = {"stream": True} if "v1 stream" in route else {}
    path = "/v1/images/generations" if "v1" in route else route
    images = {"n" if "v1" in route else "num_images": 2}
    return client.post(path, json={"prompt": "a", "seed": 7, **images, **own, **body})


@pytest.mark.parametrize("route", ROUTES)
def test_at_the_deadline_what_is_finished_comes_and_the_work_stops(
    client: TestClient, pool: FakePool, route: str
) -> None:
    pool.before = only_the_first
    response = ask(client, route, timeout_s=0.2)
    assert response.status_code == 200
    assert response.text.count("deadline_exceeded") == 1
    assert "picture7" in response.text
    assert not pool.open


@pytest.mark.parametrize("route", ROUTES)
def test_without_a_picture_the_answer_is_a_504_and_a_stream_ends_with_an_error(
    client: TestClient, pool: FakePool, route: str
) -> None:
    pool.before = none
    response = ask(client, route, timeout_s=0.2)
    assert response.status_code == (200 if "stream" in route else 504)
    last = json.loads(response.text.strip().split("\n\n")[-1].rpartition("data: ")[2].partition("\n")[0])
    told = last["detail"][0] if "fal" in route else last["error"]
    assert "deadline_exceeded" in (told.get("code"), told["type"])
    assert "within 0.2 s" in told.get("message", told.get("msg"))
    assert not pool.open


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("seconds", [0, -1, 20.5, "1", True])
def test_it_has_bounds(client: TestClient, pool: FakePool, route: str, seconds: object) -> None:
    response = ask(client, route, timeout_s=seconds)
    assert response.status_code == (400 if "v1" in route else 422)
    assert "timeout_s" in response.text
    assert not pool.slots


@pytest.mark.parametrize("route", ROUTES)
def test_none_is_the_services_own(client: TestClient, route: str) -> None:
    assert ask(client, route, timeout_s=None).status_code == 200
    assert ask(client, route, timeout_s=20).status_code == 200


def test_a_service_without_a_limit_leaves_it_to_the_client() -> None:
    args = ARGS.model_copy(update={"request_timeout_s": inf})
    with TestClient(create_api(OneModel(FakePool(), args, Metrics()), args)) as client:
        field = client.get("/openapi.json").json()["components"]["schemas"]["GenerateRequest"]["properties"][
            "timeout_s"
        ]
        assert field["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0.0}
        assert client.post("/generate", json={"prompt": "a", "timeout_s": 1e9}).status_code == 200
