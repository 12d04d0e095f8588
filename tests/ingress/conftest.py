"""The routes over a fan-out whose pool is a fake: everything HTTP, nothing of Ray's cluster."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.config import AdmissionConfig, AppArgs, LimitsConfig
from serve_app.fanout.fanout import FanOut
from serve_app.ingress.api import create_api
from tests.fakes import FakePool, Metrics, NoPeers

LIMITS = LimitsConfig(max_images=9, max_steps=50, max_body_bytes=120_000)
ARGS = AppArgs(limits=LIMITS, admission=AdmissionConfig(max_waiting_images=9))


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def client(pool: FakePool, metrics: Metrics) -> Iterator[TestClient]:
    with TestClient(create_api(FanOut(pool, NoPeers(), ARGS, metrics), ARGS), raise_server_exceptions=False) as client:
        yield client


def events_of(response: Any) -> list[dict[str, Any]]:
    """Return a stream's events; each must have its data's type as its name, and an id above the one before."""
    return [event for _, event in numbered_events_of(response)]


def numbered_events_of(response: Any) -> list[tuple[int, dict[str, Any]]]:
    """Return a stream's events with their ids."""
    events: list[tuple[int, dict[str, Any]]] = []
    for frame in response.text.strip().split("\n\n"):
        if frame.startswith(":"):
            continue
        name, data, id_ = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append((int(id_.removeprefix("id: ")), event))
    numbers = [number for number, _ in events]
    assert numbers == sorted(set(numbers))
    return events
