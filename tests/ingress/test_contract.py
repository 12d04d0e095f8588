"""Whatever is sent and whatever goes wrong, the answer is one that the OpenAPI document describes.

schemathesis invents requests and checks the answers.
"""

import asyncio
import json
import math
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
import uvicorn
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from serve_app.config import AppArgs, AuthConfig, FilesConfig, LimitsConfig, ModelConfig, TrajectoriesConfig
from serve_app.errors import SlotFailed
from serve_app.fanout.sight import PoolStatus
from serve_app.ingress.api import create_api
from serve_app.ingress.live import LiveApi
from serve_app.messages import Generated, Slot, SlotEvent
from tests.fakes import REPLICA, FakePool, Metrics, OneModel, tickets
from tests.ingress import schemathesis_hooks  # noqa: F401 - says how streams are read

CONFIG = Path(__file__).with_name("schemathesis.toml")
DESCRIBED = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
KEY = {"Authorization": "Bearer key"}


class Pictures(FakePool):
    """Generates what can be stored as a file."""

    async def generate(self, slot: Slot, replica: str = "abc", deadline: float = math.inf) -> AsyncGenerator[SlotEvent]:
        async for event in super().generate(slot, replica, deadline):
            assert isinstance(event, Generated)
            yield replace(event, b64_json=b64encode(b"picture").decode())


@pytest.fixture
def pool() -> FakePool:
    return Pictures()


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppArgs:
    """All routes, each with a key; all sizes that have a name."""
    monkeypatch.setenv("SERVICE_KEYS", "key")
    return AppArgs(
        auth=AuthConfig(keys_env="SERVICE_KEYS"),
        files=FilesConfig(path=str(tmp_path)),
        limits=LimitsConfig(max_images=4, max_steps=50, max_body_bytes=500_000),
        model=ModelConfig(max_size=1024),
        trajectories=TrajectoriesConfig(ttl_s=0.05),  # nobody lets go on what is invented
    )


@pytest.fixture
def service(pool: FakePool, args: AppArgs) -> OneModel:
    return OneModel(pool, args, Metrics())


@pytest.fixture
def client(service: OneModel, args: AppArgs) -> Iterator[TestClient]:
    with TestClient(create_api(service, args), raise_server_exceptions=False, headers=KEY) as client:
        yield client


@contextmanager
def served(app: LiveApi) -> Iterator[str]:
    """Serve an app over HTTP in a thread; yield its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        (socket,) = server.servers[0].sockets
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Contract:
    """Checks answers against the document of a service."""

    def __init__(self, client: TestClient) -> None:
        document = client.get("/openapi.json").json()
        self._paths = schemathesis.openapi.from_dict(document)
        self.routes = [(method, path) for path, operations in document["paths"].items() for method in operations]
        self._client = client

    def status(self, method: str, path: str, names: dict[str, Any], **request: Any) -> int:
        """Send a request that is right but for the given parts, check the answer, and return its status."""
        body = {"json": {"prompt": "a"}} if method == "post" else {}
        response = self._client.request(method, path.format(**names), **{**body, **request})
        self._paths[path][method].Case(path_parameters=names).validate_response(response, DESCRIBED)
        return response.status_code


def test_whatever_is_sent(service: OneModel, args: AppArgs, tmp_path: Path) -> None:
    api, document = create_api(service, args), tmp_path / "openapi.json"
    document.write_text(json.dumps(api.newest.openapi()))
    with served(api) as url:
        options = ["--url", url, "--header", "Authorization: Bearer key"]
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", str(document), *options],
            cwd=CONFIG.parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert done.returncode == 0, done.stdout


def starting(pool: FakePool, service: OneModel) -> None:
    pool.status = PoolStatus()


def stopping(pool: FakePool, service: OneModel) -> None:
    asyncio.run(service.drain(0))


def full(pool: FakePool, service: OneModel) -> None:
    pool.status = PoolStatus((REPLICA,), 0.5)
    service._admission.join(tickets(70), lambda: None)


def failing(pool: FakePool, service: OneModel) -> None:
    async def fail(slot: Slot) -> None:
        raise SlotFailed("out_of_memory", "no room")

    pool.before = fail


def broken(pool: FakePool, service: OneModel) -> None:
    pool.status = None  # type: ignore[assignment]  # a bug of ours


def hanging(pool: FakePool, service: OneModel) -> None:
    async def hang(slot: Slot) -> None:
        await asyncio.Event().wait()

    pool.before = hang


def well(pool: FakePool, service: OneModel) -> None: ...


@pytest.mark.parametrize(
    ("become", "request_", "status"),
    [
        (well, {"headers": {"Authorization": "Bearer another"}}, 401),
        (well, {"json": {"prompt": "a" * 600_000}}, 413),
        (well, {"headers": {"Content-Encoding": "gzip"}}, 415),
        (full, {}, 429),
        (failing, {}, 500),
        (broken, {}, 500),
        (starting, {}, 503),
        (stopping, {}, 503),
        (hanging, {"json": {"prompt": "a", "timeout_s": 0.1}}, 504),
    ],
)
def test_whatever_goes_wrong(
    client: TestClient,
    pool: FakePool,
    service: OneModel,
    become: Callable[[FakePool, OneModel], None],
    request_: dict[str, Any],
    status: int,
) -> None:
    contract = Contract(client)
    become(pool, service)
    names = {"id": "some", "index": 0, "name": "some", "model": "some"}
    assert status in {contract.status(*route, names, **request_) for route in contract.routes}


def test_while_it_is_generated(client: TestClient, pool: FakePool, service: OneModel) -> None:
    contract, names = Contract(client), {"id": str(uuid4()), "index": 0}
    hanging(pool, service)
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(client.post, "/generate", json={"prompt": "a", "id": names["id"]})
        while not (pool.open or answer.done()):
            time.sleep(0.01)
        try:
            assert contract.status("get", "/generations/{id}", names) == 202
            assert contract.status("post", "/generations/{id}/resume", names, json={}) == 409
            assert contract.status("post", "/generations/{id}/images/{index}/resume", names) == 409
            assert contract.status("delete", "/generations/{id}/images/{index}", names) == 200
        finally:  # or the thread would wait for its answer
            assert contract.status("delete", "/generations/{id}", names) == 200
    assert {image["status"] for image in answer.result().json()["images"]} == {"cancelled"}
    assert contract.status("get", "/generations/{id}", names) == 200
    assert contract.status("get", "/generations/{id}/events", names) == 200
