import asyncio
from collections.abc import AsyncIterator

import pytest
from anyio import BrokenResourceError
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.config import AppArgs
from serve_app.ingress.api import create_api
from serve_app.ingress.disconnect import ErrorAsDisconnect
from serve_app.messages import Slot
from tests.fakes import FakePool, Metrics, OneModel

SCOPE = {"type": "http", "asgi": {"spec_version": "2.3"}}


class Gone(Exception):
    """The client has hung up."""


class Endless:
    """An app that streams until the client hangs up; `ended` is whether it has."""

    ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(self._stream())(scope, receive, send)

    async def _stream(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"more"
                await asyncio.sleep(0)
        finally:
            self.ended = True


async def run(app: ASGIApp, error: Exception | None) -> None:
    """Run an app of which `receive` raises an error once and then never returns, as Serve's does.

    Without an error it says once that the client has gone.
    """
    errors = iter([error])

    async def receive() -> Message:
        for error in errors:
            if error is None:
                return {"type": "http.disconnect"}
            raise error
        await asyncio.Event().wait()
        raise AssertionError

    async def send(_: Message) -> None: ...

    async with asyncio.timeout(5):
        await app(SCOPE, receive, send)


async def test_a_stream_ends_without_an_error_when_its_client_hangs_up() -> None:
    app = Endless()
    await run(ErrorAsDisconnect(app, Gone), Gone())
    assert app.ended


@pytest.mark.parametrize("told", [Gone(), None], ids=["an error", "a message"])
async def test_a_stream_whose_pipe_loses_its_reader_as_the_client_leaves_is_no_fault(told: Exception | None) -> None:
    async def app(_: Scope, receive: Receive, __: Send) -> None:
        assert await receive() == {"type": "http.disconnect"}
        raise ExceptionGroup("of a task group", [BrokenResourceError()])

    await run(ErrorAsDisconnect(app, Gone), told)


async def test_a_pipe_that_breaks_because_the_request_is_cancelled_hides_no_cancellation() -> None:
    started = asyncio.Event()

    async def app(*_: object) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ExceptionGroup("of a task group", [BrokenResourceError()])

    running = asyncio.create_task(run(ErrorAsDisconnect(app, Gone), Gone()))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_pipe_that_breaks_while_the_client_is_there_is_a_fault() -> None:
    async def app(*_: object) -> None:
        raise BrokenResourceError

    with pytest.raises(ExceptionGroup):
        await run(ErrorAsDisconnect(app, Gone), Gone())


async def test_other_errors_stay_errors() -> None:
    with pytest.raises(OSError, match="disk"):
        await run(ErrorAsDisconnect(Endless(), Gone), OSError("disk"))


async def test_a_client_that_has_gone_stays_gone() -> None:
    heard = []

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        heard.extend([await receive(), await receive()])

    await run(ErrorAsDisconnect(app, Gone), Gone())
    assert heard == [{"type": "http.disconnect"}] * 2


async def test_the_service_ends_what_it_generates_for_a_client_whose_leaving_is_told_by_an_error() -> None:
    generating = asyncio.Event()

    async def forever(_: Slot) -> None:
        generating.set()
        await asyncio.Event().wait()

    pool, args, body = FakePool(before=forever), AppArgs(), b'{"prompt": "a", "num_images": 1}'
    api = create_api(OneModel(pool, args, Metrics()), args, disconnect=Gone)
    headers = [(b"content-type", b"application/json")]
    scope = {**SCOPE, "method": "POST", "path": "/stream", "query_string": b"", "headers": headers}

    messages = iter([{"type": "http.request", "body": body}])

    async def receive() -> Message:
        for message in messages:
            return message
        await generating.wait()
        raise Gone

    async def send(_: Message) -> None: ...

    async with asyncio.timeout(5):
        await api(scope, receive, send)
    assert (len(pool.slots), pool.open) == (1, set())
