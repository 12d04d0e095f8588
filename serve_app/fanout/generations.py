"""The requests an ingress replica has in hand, by id: what there is to cancel."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.fanout.generation import Generation

_REMEMBERED_REQUESTS = 256


class Generations:
    """Cancels images by their request's id, and remembers what it cancelled of requests that have ended since."""

    def __init__(self) -> None:
        self._generations: dict[str, Generation] = {}
        self._ended: OrderedDict[str, frozenset[int]] = OrderedDict()

    @contextmanager
    def holding(self, id: str, generation: Generation) -> Iterator[None]:
        """Let a request be cancelled for as long as the context is open."""
        self._generations[id] = generation
        try:
            yield
        finally:
            del self._generations[id]
            if generation.cancelled:
                self._ended[id] = frozenset(generation.cancelled)
            if len(self._ended) > _REMEMBERED_REQUESTS:
                self._ended.popitem(last=False)

    def cancel(self, id: str, index: int | None) -> list[int]:
        """Cancel one image of a request, or with None all that have not ended; return the cancelled ones.

        Those cancelled before are among them. Empty where there is nothing to cancel: the request is not here or has
        finished, the image has ended or never was.
        """
        generation = self._generations.get(id)
        if generation is not None:
            generation.cancel(index)
        cancelled = generation.cancelled if generation is not None else self._ended.get(id, frozenset[int]())
        return sorted(i for i in cancelled if index in (None, i))
