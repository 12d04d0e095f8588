"""Client disconnects that the server reports as an error."""

import asyncio

from anyio import BrokenResourceError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Errors = type[Exception] | tuple[type[Exception], ...]
"""One or several exception types, as `except` takes them."""


class ErrorAsDisconnect:
    """Turns `errors` raised by the server's `receive` into ASGI's `http.disconnect`.

    Apps treat any error of `receive` as a bug of their own and log a traceback. FastAPI raises one of its own when a
    client leaves while an event is on its way through the pipe of a stream, which then has no reader; also in place of
    the cancellation, if the server cancels the request before anyone has asked `receive`.
    """

    def __init__(self, app: ASGIApp, errors: Errors) -> None:
        self._app = app
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        gone = False

        async def told() -> Message:
            nonlocal gone
            if not gone:
                try:
                    message = await receive()
                except self._errors:
                    gone = True
                else:
                    gone = message["type"] == "http.disconnect"
                    return message
            return {"type": "http.disconnect"}

        try:
            await self._app(scope, told, send)
        except* BrokenResourceError:
            if not gone and not _is_cancelled():
                raise
        if _is_cancelled():
            raise asyncio.CancelledError


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
