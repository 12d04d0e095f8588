"""The routes over a fan-out whose pool is a fake: everything HTTP, nothing of Ray's cluster."""

import json
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, cast

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from serve_app.config import AdmissionConfig, AppArgs, LimitsConfig
from serve_app.ingress.api import create_api
from serve_app.ingress.live import LiveApi
from serve_app.ingress.service import Service
from tests.fakes import FakePool, Metrics, OneModel

LIMITS = LimitsConfig(max_images=9, max_steps=50, max_body_bytes=500_000)
ARGS = AppArgs(limits=LIMITS, admission=AdmissionConfig(max_waiting_images=9))


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


class Routes:
    """The routes of all services with some settings, made once: that takes 60 ms, and to collect them as long again."""

    def __init__(self, args: AppArgs) -> None:
        self._service: OneModel | None = None
        self.app: LiveApi = create_api(cast(Service, self), args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    def of(self, name: str) -> "Routes":
        """A service of one model is that model's as well."""
        return self

    def running(self) -> AbstractAsyncContextManager[None]:
        """It is taken when the routes are made, unlike all others."""
        assert self._service is not None
        return self._service.running()

    @contextmanager
    def before(self, service: OneModel) -> Iterator[LiveApi]:
        """Serve this service, and no other meanwhile."""
        assert self._service is None, "one at a time"
        self._service = service
        try:
            yield self.app
        finally:
            self._service = None


_made: dict[str, Routes] = {}


@contextmanager
def client_of(service: OneModel, args: AppArgs = ARGS, **options: Any) -> Iterator[TestClient]:
    """Open a client of a service over routes that all tests with these settings share.

    Routes that depend on more, as on files of one test or on keys that change, are to be made with `create_api`. Where
    adapters lie matters to the service alone.
    """
    key = args.model_dump_json(exclude={"adapters": {"path"}})
    if key not in _made:
        _made[key] = Routes(args)
    with _made[key].before(service) as app, TestClient(app, raise_server_exceptions=False, **options) as client:
        yield client


@pytest.fixture
def client(pool: FakePool, metrics: Metrics) -> Iterator[TestClient]:
    with client_of(OneModel(pool, ARGS, metrics)) as client:
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


@pytest.fixture
def sdk(client: TestClient) -> OpenAI:
    """OpenAI's own client."""
    return OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0)
