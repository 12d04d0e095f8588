"""The requests that an ingress replica generates, by id, so that they can be cancelled."""

from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from serve_app.fanout.generation import Generation

_REMEMBERED_REQUESTS = 256


class Generations:
    """Cancels images by their request's id, and remembers what it cancelled of requests that have ended since."""

    def __init__(self) -> None:
        self._generations: dict[str, Generation] = {}
        self._remembered: OrderedDict[str, frozenset[int]] = OrderedDict()

    @contextmanager
    def holding(self, id: str, generation: Generation) -> Iterator[None]:
        """Let a request be cancelled for as long as the context is open."""
        self._generations[id] = generation
        try:
            yield
        finally:
            del self._generations[id]
            if generation.cancelled:
                self._remembered[id] = generation.cancelled
            if len(self._remembered) > _REMEMBERED_REQUESTS:
                self._remembered.popitem(last=False)

    @property
    def running(self) -> Collection[Generation]:
        """The requests that have not been answered."""
        return self._generations.values()

    def cancel(self, id: str, index: int | None) -> list[int]:
        """Cancel one image of a request, or with None all that have not ended; return the cancelled ones.

        Those cancelled before are among them. Empty where there is nothing to cancel: the request is not here or has
        finished, the image has ended or never was.
        """
        if generation := self._generations.get(id):
            generation.cancel(index)
            cancelled = generation.cancelled
        else:
            cancelled = self._remembered.get(id, frozenset())
        return sorted(i for i in cancelled if index in (None, i))
