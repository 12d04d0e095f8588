"""The calls a pool has made and which of them it still waits for."""

from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.messages import Call, OpenCalls, new_caller


class Calls:
    """Numbers calls, so that what is known of them holds whatever overtakes what on the way."""

    def __init__(self, actor: str | None = None) -> None:
        """Take the name of the Ray actor that makes them, if it has one."""
        self._caller = new_caller(actor)
        self._made = 0
        self._open: set[int] = set()

    @contextmanager
    def new(self, replica: str, timeout_s: float) -> Iterator[Call]:
        """Make a call and wait for it for as long as the context is open."""
        number = self._made
        self._made += 1
        self._open.add(number)
        try:
            yield Call(self._caller, number, timeout_s, replica)
        finally:
            self._open.discard(number)

    def still_open(self, images_waiting: int = 0) -> OpenCalls:
        """Return which calls are waited for, of all made so far, and how many images wait to be called for."""
        return OpenCalls(self._caller, self._made, frozenset(self._open), images_waiting)
