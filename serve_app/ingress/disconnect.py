"""Client disconnects that the server reports as an error."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Errors = type[Exception] | tuple[type[Exception], ...]
"""One or several exception types, as `except` takes them."""


class ErrorAsDisconnect:
    """Turns `errors` raised by the server's `receive` into ASGI's `http.disconnect`.

    Apps treat any error of `receive` as a bug of their own and log a traceback.
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
