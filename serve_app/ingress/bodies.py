"""What a request's body may be, whichever route reads it."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class PlainBodies:
    """Refuse a body of more than `max_bytes` as it is read, and one that is compressed.

    FastAPI's own `max_body_size` answers in plain text, and it knows no Content-Encoding; this one raises, so that the
    app's handlers shape the answer.
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
                message = f"Content-Encoding: {encoding} is not understood; send the body uncompressed"
                raise HTTPException(415, message, {"Accept-Encoding": "identity"})
            if received > self._max_bytes:
                raise HTTPException(413, f"the body must not be larger than {self._max_bytes} bytes")
            return told

        await self._app(scope, checked, send)
