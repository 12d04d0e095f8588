"""The line that the log has of each request, and what is counted of it."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from serve_app.ingress.api import create_api
from serve_app.ingress.request_log import LoggedRequests
from serve_app.line import current
from serve_app.messages import Slot
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, events_of

PROMPT = "a prompt that nobody else may read"
BODY = {"prompt": PROMPT, "negative_prompt": PROMPT, "num_images": 2, "seed": 7, "width": 64, "height": 64}

Counted = list[tuple[str, str]]


async def fail(slot: Slot) -> None:
    raise ValueError("no")


@pytest.fixture
def counted() -> Counted:
    return []


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    caplog.set_level(logging.DEBUG, "ray.serve")
    return lambda: [record for record in caplog.records if hasattr(record, "seconds")]


def app_on(pool: FakePool, counted: Counted) -> Iterator[TestClient]:
    api = create_api(
        OneModel(pool, ARGS, Metrics()), ARGS, count=lambda route, outcome, _: counted.append((route, outcome))
    )
    with TestClient(api) as client:
        yield client


@pytest.fixture
def client(counted: Counted) -> Iterator[TestClient]:
    yield from app_on(FakePool(), counted)


@pytest.fixture
def failing(counted: Counted) -> Iterator[TestClient]:
    yield from app_on(FakePool(before=fail), counted)


Log = Callable[[], list[logging.LogRecord]]


def fields(record: logging.LogRecord, *names: str) -> list[Any]:
    return [getattr(record, name) for name in names]


def test_a_request_is_one_line_with_all_that_is_known_of_it_but_its_prompts(
    client: TestClient, counted: Counted, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    start, *_ = events_of(client.post("/stream", json=BODY, headers={"x-request-id": "from-the-proxy"}))
    (line,) = log()
    assert line.levelno == logging.INFO
    assert line.generation == start["id"]  # type: ignore[attr-defined]  # a fact
    assert fields(line, "method", "path", "status", "request_id") == ["POST", "/stream", 200, "from-the-proxy"]
    assert fields(line, "images", "succeeded", "seeds", "size", "steps") == [2, 2, [7, 8], "64x64", 20]
    assert fields(line, "replicas", "gpu_seconds") == [["abc", "def"], 1.0]
    assert "seeds=7,8" in line.getMessage()
    assert PROMPT not in caplog.text
    assert counted == [("/stream", "succeeded")]


def test_refused_and_failed_requests_say_why(failing: TestClient, counted: Counted, log: Log) -> None:
    failing.post("/generate", json=BODY)
    events_of(failing.post("/stream", json=BODY))
    failing.post("/generate", json={**BODY, "num_images": 0})
    assert [fields(line, "status") for line in log()] == [[500], [200], [422]]
    assert [fields(line, "failures", "error") for line in log()[:2]] == [[["internal"], "generation_failed"]] * 2
    assert counted == [("/generate", "failed"), ("/stream", "failed"), ("/generate", "invalid")]


@pytest.mark.parametrize("path", ["/health", "/status", "/", "/openapi.json", "/nothing"])
def test_probes_are_not_worth_a_line(client: TestClient, counted: Counted, log: Log, path: str) -> None:
    client.get(path)
    assert [line.levelno for line in log()] == [logging.DEBUG]
    assert counted == []


def test_a_path_cannot_forge_a_line(client: TestClient, counted: Counted, log: Log) -> None:
    client.post("/a%0aINFO")
    assert fields(log()[0], "path") == ["/a%0AINFO"]
    assert counted == [("other", "invalid")]


async def receive() -> Message:
    return {"type": "http.disconnect"}


async def send(_: Message) -> None: ...


async def test_a_client_that_left_reads_499_and_its_generation_is_still_told(log: Log) -> None:
    """The generation goes on without it: the line waits for its end."""
    counted: Counted = []
    generation = current().open()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal generation
        generation = current().open()
        generation.__enter__()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        current().facts["succeeded"] = 0

    logged = LoggedRequests(app, lambda route, outcome, _: counted.append((route, outcome)))
    await logged({"type": "http", "method": "POST", "path": "/stream", "headers": []}, receive, send)
    assert counted == [("/stream", "left")]
    assert log() == []
    generation.__exit__(None, None, None)
    assert [fields(line, "status", "succeeded") for line in log()] == [[499, 0]]
