"""Every stream of every dialect ends with its own last frame, whatever raises on the way."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from serve_app.canvas import Canvas
from serve_app.errors import DeadlineExceeded, ServiceError
from serve_app.readings import Entry, Reading
from serve_app.schemas import Event, GenerateRequest, ImageEvent
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, client_of

STREAMS = ["/stream", "/v1/images/generations", "/fal-ai/fast-sdxl/stream"]


class Breaking(OneModel):
    """Its streams break off behind their first image."""

    error: Exception

    @asynccontextmanager
    async def stream(
        self, request: GenerateRequest, canvas: Canvas | None = None
    ) -> AsyncIterator[AsyncGenerator[Event]]:
        async with super().stream(request) as events:
            yield self._broken(events)

    @asynccontextmanager
    async def open(self, request: GenerateRequest, canvas: Canvas | None = None) -> AsyncIterator[Reading]:
        async with super().open(request) as reading:
            yield replace(reading, entries=self._broken_entries(reading.entries))

    async def _broken_entries(self, entries: AsyncGenerator[Entry]) -> AsyncGenerator[Entry]:
        async for entry in entries:
            yield entry
            if isinstance(entry.event, ImageEvent):
                raise self.error

    async def _broken(self, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
        async for event in events:
            yield event
            if isinstance(event, ImageEvent):
                raise self.error


@pytest.mark.parametrize(
    ("error", "type_", "message"),
    [
        (ZeroDivisionError("secret"), "internal", "the service failed on this request; its log says why"),
        (DeadlineExceeded("too late"), "deadline_exceeded", "too late"),
    ],
)
@pytest.mark.parametrize("route", STREAMS)
def test_a_stream_that_breaks_says_so(route: str, error: Exception, type_: str, message: str, caplog: Any) -> None:
    service = Breaking(FakePool(), ARGS, Metrics())
    service.error = error
    body = {"prompt": "a", **({"stream": True} if "v1" in route else {})}
    with client_of(service) as client:
        response = client.post(route, json=body)
    assert response.status_code == 200
    last = json.loads(response.text.strip().split("\n\n")[-1].partition("data: ")[2].partition("\n")[0])
    told = last["detail"][0] if "fal" in route else last["error"]
    assert {told["type"], told.get("code")} >= {type_}
    assert told.get("message", told.get("msg")) == message
    assert "fal" in route or last["type"] == "error"
    assert ("secret" in caplog.text) == (not isinstance(error, ServiceError))
    assert "secret" not in response.text
