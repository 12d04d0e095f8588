"""Every error below `/v1` is in OpenAI's words."""

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from serve_app.fanout.sight import PoolStatus
from serve_app.ingress.api import create_api
from tests.fakes import REPLICA, FakePool, Metrics, OneModel, tickets
from tests.ingress.conftest import ARGS
from tests.ingress.openai_api import URL, all_fail, second_fails


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nope", 404, "not_found"),
        ("GET", URL, 405, "method_not_allowed"),
        ("POST", URL, 413, "payload_too_large"),
    ],
)
def test_every_error_below_v1_is_in_openais_words(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path, json={"prompt": "a" * 600_000})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"], error["param"]) == (
        status,
        "invalid_request_error",
        code,
        None,
    )


def test_a_full_queue_is_a_429_with_retry_after(client: TestClient, pool: FakePool) -> None:
    pool.status = PoolStatus((REPLICA,), 0.5)
    full = OneModel(pool, ARGS, Metrics())
    full._admission.join(tickets(13), lambda: None)
    with TestClient(create_api(full, ARGS)) as busy:
        for stream in (False, True):
            response = busy.post(URL, json={"prompt": "a", "stream": stream})
            assert (response.status_code, response.headers["retry-after"]) == (429, "2")
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert response.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("route", [URL, "/v1/models"])
def test_without_a_replica_it_is_a_503(client: TestClient, pool: FakePool, route: str) -> None:
    pool.status = PoolStatus()
    response = client.post(route, json={"prompt": "a"}) if route == URL else client.get(route)
    assert (response.status_code, response.json()["error"]["type"], response.json()["error"]["code"]) == (
        503,
        "server_error",
        "not_ready",
    )


def test_a_failed_image_is_in_its_place(sdk: OpenAI, pool: FakePool) -> None:
    pool.before = second_fails
    answer = sdk.images.generate(prompt="a", n=3, extra_body={"seed": 0})
    assert answer.data
    assert [item.b64_json for item in answer.data] == ["picture0", None, "picture2"]
    assert answer.data[1].to_dict() == {
        "b64_json": None,
        "url": None,
        "image_index": 1,
        "seed": 1,
        "variations": [],
        "model": None,
        "failure": {"type": "out_of_memory", "message": "no room"},
    }


def test_all_failed_is_a_500(client: TestClient, pool: FakePool) -> None:
    pool.before = all_fail
    response = client.post(URL, json={"prompt": "a"})
    assert (response.status_code, response.json()["error"]["type"], response.json()["error"]["code"]) == (
        500,
        "server_error",
        "generation_failed",
    )
