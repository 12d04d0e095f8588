"""Clients that hang up, where the server tells of them by an error."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Errors = type[Exception] | tuple[type[Exception], ...]
"""What an `except` takes."""


class ErrorAsDisconnect:
    """Tell the app that the client has gone, as ASGI does, where the server's `receive` raises `errors` instead.

    An app takes any error of `receive` for a fault of its own and logs it at length.
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
                    return await receive()
                except self._errors:
                    gone = True
            return {"type": "http.disconnect"}

        await self._app(scope, told, send)
