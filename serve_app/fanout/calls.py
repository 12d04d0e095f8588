"""The calls a pool has made and which of them it still waits for."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.messages import Call, OpenCalls


class Calls:
    """Numbers calls, so that what is known of them holds whatever overtakes what on the way."""

    def __init__(self) -> None:
        self._caller = uuid.uuid4().hex
        self._made = 0
        self._open: set[int] = set()

    @contextmanager
    def new(self, avoid: frozenset[str] = frozenset(), model: str | None = None) -> Iterator[Call]:
        """Make a call and wait for it for as long as the context is open."""
        number = self._made
        self._made += 1
        self._open.add(number)
        try:
            yield Call(self._caller, number, avoid=avoid, model=model)
        finally:
            self._open.discard(number)

    def still_open(self) -> OpenCalls:
        """Return which calls are waited for, of all made so far."""
        return OpenCalls(self._caller, self._made, frozenset(self._open))
