"""The line that the log has of each request: its facts come from the routes and from the fan-out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

_FAL = "/fal-ai/fast-sdxl"
ROUTES = (
    "/generate",
    "/stream",
    *(f"/v1/images/{name}" for name in ("generations", "edits", "variations")),
    *(f"{_FAL}{model}{mode}" for model in ("", "/image-to-image", "/inpainting") for mode in ("", "/stream")),
    *(f"/sdapi/v1/{name}" for name in ("txt2img", "img2img")),
)
"""The routes that generate images. All others are counted together."""

OTHER = "other"
"""Stands for all values that are not worth a series of their own."""

Outcome = Literal["succeeded", "invalid", "refused", "failed", "left"]
"""How a request has ended; `left`: the client did not wait for the answer."""


class Line:
    """The facts of one request; they are written once nobody has any to add."""

    def __init__(self, write: Callable[[Mapping[str, Any]], None]) -> None:
        self.facts: dict[str, Any] = {}
        self._write = write
        self._open = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Put off the writing while the context is open: a generation may go on when its client has left."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._write(self.facts)


def _nowhere(_: Mapping[str, Any]) -> None: ...


_line: ContextVar[Line | None] = ContextVar("line", default=None)


def begin(line: Line) -> None:
    """Make this the line of the request being served."""
    _line.set(line)


def current() -> Line:
    """Return the line of the request being served; outside of one, a line that nobody reads."""
    return _line.get() or Line(_nowhere)
