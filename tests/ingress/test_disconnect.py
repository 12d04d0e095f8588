import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from serve_app.ingress.disconnect import ErrorAsDisconnect


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


async def raising(error: Exception) -> Endless:
    """Run an endless app until `receive` raises an error."""
    app = Endless()

    async def receive() -> Message:
        raise error

    async def send(_: Message) -> None: ...

    async with asyncio.timeout(5):
        await ErrorAsDisconnect(app, Gone)({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
    return app


async def test_a_stream_ends_without_an_error_when_its_client_hangs_up() -> None:
    assert (await raising(Gone())).ended


async def test_other_errors_stay_errors() -> None:
    with pytest.raises(OSError, match="disk"):
        await raising(OSError("disk"))
