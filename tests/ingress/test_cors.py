"""Other web pages can read every answer, also those that say what went wrong."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from serve_app.config import CorsConfig
from serve_app.errors import SlotFailed
from serve_app.fanout.sight import PoolStatus
from serve_app.messages import Slot
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, client_of

PAGE = "https://app.example.com"
ROUTES = ["/generate", "/stream", "/v1/images/generations", "/fal-ai/fast-sdxl", "/fal-ai/fast-sdxl/stream"]


class Faulty(FakePool):
    """Whoever asks for its replicas runs into a bug of ours."""

    @property
    def any_replica(self) -> None:  # type: ignore[override]  # it never returns
        raise ZeroDivisionError("a bug of ours")


async def failing(slot: Slot) -> None:
    raise SlotFailed("out_of_memory", "no room")


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def client(pool: FakePool) -> Iterator[TestClient]:
    args = ARGS.model_copy(update={"cors": CorsConfig(allow_origins=(PAGE,))})
    service = OneModel(pool, args, Metrics())
    with client_of(service, args, headers={"Origin": PAGE}) as client:
        yield client


@pytest.mark.parametrize("pool", [Faulty()], ids=["faulty"])
@pytest.mark.parametrize("route", [*ROUTES, "/v1/models"])
def test_a_bug_of_ours_can_be_read(client: TestClient, pool: FakePool, route: str) -> None:
    response = client.get(route) if route == "/v1/models" else client.post(route, json={"prompt": "a"})
    assert response.status_code == 500
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "a bug of ours" not in response.text
    assert response.json()


@pytest.mark.parametrize("route", ROUTES)
def test_so_can_every_other_status(client: TestClient, pool: FakePool, route: str) -> None:
    answers = [client.post(route, json={"prompt": "a"}), client.post(route, json={}), client.put(route)]
    answers += [client.post(route, json={"prompt": "a" * 600_000}), client.post(f"{route}/nowhere", json={})]
    answers += [client.post(route, content=b"x", headers={"Content-Encoding": "gzip"})]
    pool.before = failing
    answers += [client.post(route, json={"prompt": "a"})]
    pool.status = PoolStatus()
    answers += [client.post(route, json={"prompt": "a"})]
    assert {answer.status_code for answer in answers} >= {200, 404, 405, 413, 415, 503}
    assert {answer.headers.get("access-control-allow-origin") for answer in answers} == {PAGE}


def test_a_page_that_may_not_read_gets_no_such_header(client: TestClient) -> None:
    assert (
        "access-control-allow-origin" not in client.get("/health", headers={"Origin": "https://evil.example"}).headers
    )
