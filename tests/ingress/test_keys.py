"""Who may use the service, and which pages may call it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.config import AuthConfig, CorsConfig
from serve_app.ingress.api import create_api
from serve_app.ingress.keys import KeyRing
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, client_of

BODY = {"prompt": "a", "num_images": 1}
Serve = Callable[..., TestClient]


@pytest.fixture
def serve(pool: FakePool) -> Serve:
    def make(**parts: Any) -> TestClient:
        args = ARGS.model_copy(update=parts)
        return TestClient(create_api(OneModel(pool, args, Metrics()), args))

    return make


@pytest.fixture
def locked(pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("SERVICE_KEYS", "one, two\nthree")
    cors = CorsConfig(allow_origins=("https://app.example.com",))
    args = ARGS.model_copy(update={"auth": AuthConfig(keys_env="SERVICE_KEYS"), "cors": cors})
    with client_of(OneModel(pool, args, Metrics()), args) as client:
        yield client


@pytest.mark.parametrize(
    "authorization",
    ["Bearer one", "Bearer two", "bearer three", "Key one", "Bearer  two ", "Basic bWU6dHdv"],  # me:two
)
def test_a_valid_key_opens(locked: TestClient, authorization: str) -> None:
    assert locked.post("/generate", json=BODY, headers={"Authorization": authorization}).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer four",
        "Basic dHdvOmZvdXI=",  # two:four
        "Basic dHdv",  # two
        "Basic \xe9",
        "Bearer on",
        "Bearer onee",
        "Basic one",
        "one",
        "Bearer one, two",
        "Bearer \xe9",
    ],
)
def test_any_other_is_a_401(locked: TestClient, pool: FakePool, authorization: str) -> None:
    response = locked.post("/generate", content=b"{", headers={b"Authorization": authorization.encode("latin-1")})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json() == {
        "error": {
            "type": "unauthorized",
            "message": "a valid API key is needed, sent as Authorization: Bearer KEY",
            "param": None,
        }
    }
    assert not pool.slots


def test_every_api_words_it_its_own_way(locked: TestClient) -> None:
    openai = locked.post("/v1/images/generations", json={"prompt": "a"})
    assert (openai.status_code, openai.json()["error"]["code"], openai.json()["error"]["type"]) == (
        401,
        "invalid_api_key",
        "invalid_request_error",
    )
    fal = locked.post("/fal-ai/fast-sdxl", json={"prompt": "a"})
    assert (fal.status_code, fal.json()["detail"][0]["type"]) == (401, "unauthorized")


def test_all_is_closed_but_what_is_meant_to_be_open(locked: TestClient) -> None:
    for method, path in [
        ("GET", "/status"),
        ("POST", "/stream"),
        ("DELETE", "/generations/1"),
        ("GET", "/v1/models"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/nope"),
        ("GET", "/healthy"),
    ]:
        assert locked.request(method, path).status_code == 401, path
    for path in ("/", "/health", "/playground/main.js", "/files/" + "a" * 32 + ".png"):
        assert locked.get(path).status_code in (200, 404), path


def test_a_page_elsewhere_may_call_if_it_is_named(locked: TestClient) -> None:
    asks = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-lang",
    }
    leave = locked.options("/generate", headers={"Origin": "https://app.example.com", **asks})
    assert leave.status_code == 200
    assert leave.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "authorization" in leave.headers["access-control-allow-headers"].lower()
    assert locked.options("/generate", headers={"Origin": "https://evil.example.com", **asks}).status_code == 400
    for key, status in (("one", 200), ("none", 401)):
        response = locked.post(
            "/generate", json=BODY, headers={"Origin": "https://app.example.com", "Authorization": f"Bearer {key}"}
        )
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (
            status,
            "https://app.example.com",
        )
        assert response.headers["access-control-expose-headers"] == "Retry-After, X-GPU-Seconds"


def test_otherwise_no_page_may(client: TestClient) -> None:
    response = client.post("/generate", json=BODY, headers={"Origin": "https://app.example.com"})
    assert "access-control-allow-origin" not in response.headers
    assert (
        client.options(
            "/generate", headers={"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
        ).status_code
        == 405
    )


@pytest.mark.parametrize(
    ("auth", "environ", "says"),
    [
        ({"keys_env": "SERVICE_KEYS"}, {}, "SERVICE_KEYS is not set"),
        ({"keys_env": "SERVICE_KEYS"}, {"SERVICE_KEYS": " ,\n"}, "SERVICE_KEYS is not set or holds no key"),
        (
            {"keys_env": "SERVICE_KEYS"},
            {"SERVICE_KEYS": "\u043a\u043b\u044e\u0447"},
            "SERVICE_KEYS holds a key with a character",
        ),
        ({"keys_env": "SERVICE_KEYS"}, {"SERVICE_KEYS": "two words"}, "SERVICE_KEYS holds a key with a character"),
        ({"keys_file": "missing"}, {}, "there is no file"),
        ({"keys_file": "spoilt"}, {}, "spoilt cannot be read"),
        ({"keys_file": "empty"}, {}, "holds no key"),
        ({"keys_file": "empty", "keys_env": "SERVICE_KEYS"}, {"SERVICE_KEYS": "one"}, "holds no key"),
    ],
)
def test_keys_that_are_configured_but_missing_keep_it_from_starting(
    tmp_path: Path, auth: dict[str, str], environ: dict[str, str], says: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "spoilt").write_bytes(b"one\n\xff\xfe\n")
    if "keys_file" in auth:
        auth = {**auth, "keys_file": str(tmp_path / auth["keys_file"])}
    with pytest.raises(ValueError, match=says):
        KeyRing(AuthConfig(**auth), environ)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("old\n")
    ring = KeyRing(AuthConfig(keys_file=str(path), keys_env="SERVICE_KEYS"), {"SERVICE_KEYS": "fixed"})
    assert "old" in ring
    path.write_text("new\nnewer\n")
    os.utime(path, ns=(1, 1))
    assert ("old" in ring, "new" in ring, "newer" in ring, "fixed" in ring) == (False, True, True, True)
    path.write_bytes(b"\xef\xbb\xbfwith-a-mark\r\n")
    os.utime(path, ns=(2, 2))
    assert ("with-a-mark" in ring, "new" in ring) == (True, False)
    path.write_bytes(b"spoilt\n\xff\xfe\n")
    os.utime(path, ns=(3, 3))
    assert ("spoilt" in ring, "with-a-mark" in ring, "fixed" in ring) == (False, False, True)
    path.unlink()
    assert ("new" in ring, "" in ring, "fixed" in ring) == (False, False, True)


def test_openapi_says_where_a_key_is_needed(locked: TestClient, client: TestClient) -> None:
    document = locked.get("/openapi.json", headers={"Authorization": "Bearer one"}).json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert (
                bool(operation.get("security")) == ("401" in operation["responses"]) == (path not in {"/", "/health"})
            ), path
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]
