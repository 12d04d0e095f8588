"""A service that is told to end refuses in each API's own words, and says when to try again."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest
from ray.serve.handle import DeploymentHandle
from starlette.testclient import TestClient
from starlette.types import Message

from serve_app.config import ONLY_MODEL
from serve_app.ingress.deployment import Ingress
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, client_of


async def test_the_drain_waits_for_answers_that_are_being_sent_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_app.ingress.deployment._SENDING_S", 0.1)
    ingress, taken = Ingress(ARGS, {ONLY_MODEL: cast(DeploymentHandle, NoReplicas())}), asyncio.Event()
    api = ingress.__serve_build_asgi_app__()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Message) -> None:
        await taken.wait()

    scope = {"type": "http", "method": "GET", "path": "/health", "headers": [], "query_string": b""}
    answering = asyncio.create_task(api(scope, receive, send))
    await asyncio.sleep(0.01)
    draining = asyncio.create_task(ingress.drain(5))
    await asyncio.sleep(0.3)
    assert not draining.done(), "within the grace"
    async with asyncio.timeout(5):
        await ingress.drain(0)
    taken.set()
    async with asyncio.timeout(5):
        await asyncio.gather(draining, answering)


class NoReplicas:
    def options(self, **_: Any) -> "NoReplicas":
        return self


@pytest.fixture
def draining() -> Iterator[TestClient]:
    service = OneModel(FakePool(), ARGS, Metrics())
    asyncio.run(service.drain(0))
    with client_of(service) as client:
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
