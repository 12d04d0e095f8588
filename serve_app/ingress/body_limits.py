"""Limits on request bodies, for every route."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class PlainBodies:
    """Refuses bodies above `max_bytes` while they are read, and compressed ones.

    Why not FastAPI's `max_body_size`: it answers in plain text and ignores Content-Encoding. This raises, so that the
    app's error handlers word the answer.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        received = 0
        encoding = Headers(scope=scope).get("content-encoding", "").strip().lower()

        async def checked() -> Message:
            nonlocal received
            told = await receive()
            received += len(told.get("body", b""))
            if received and encoding not in ("", "identity"):
                message = f"Content-Encoding: {encoding} is not supported; send the body uncompressed"
                raise HTTPException(415, message, {"Accept-Encoding": "identity"})
            if received > self._max_bytes:
                raise HTTPException(413, f"the body must not be larger than {self._max_bytes} bytes")
            return told

        await self._app(scope, checked, send)
