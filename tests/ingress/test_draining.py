"""A service that is told to end refuses in each API's own words, and says when to try again."""

import asyncio
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from serve_app.fanout.fanout import FanOut
from serve_app.ingress.api import create_api
from tests.fakes import FakePool, Metrics, NoPeers
from tests.ingress.conftest import ARGS


@pytest.fixture
def draining() -> Iterator[TestClient]:
    service = FanOut(FakePool(), NoPeers(), ARGS, Metrics())
    asyncio.run(service.drain(0))
    with TestClient(create_api(service, ARGS)) as client:
        yield client


@pytest.mark.parametrize(
    "route", ["/generate", "/stream", "/v1/images/generations", "/fal-ai/fast-sdxl", "/fal-ai/fast-sdxl/stream"]
)
def test_each_api_refuses_in_its_own_words(draining: TestClient, route: str) -> None:
    response = draining.post(route, json={"prompt": "a"})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    body = response.json()
    if "fal" in route:
        assert body["detail"][0]["type"] == "shutting_down"
    elif "v1" in route:
        assert (body["error"]["type"], body["error"]["code"]) == ("server_error", "shutting_down")
    else:
        assert body["error"]["type"] == "shutting_down"


def test_health_takes_it_out_of_a_load_balancer(draining: TestClient) -> None:
    response = draining.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "stopping")
