"""The generations that an ingress replica holds, by id: running ones, and ended ones for a while."""

import asyncio
from collections import OrderedDict
from collections.abc import Collection

from serve_app.errors import InvalidRequest
from serve_app.fanout.held import Held

_REMEMBERED_REQUESTS = 256


class Registry:
    """Finds and cancels generations by id, and remembers what it cancelled of those it has dropped since.

    All ended ones take at most `max_bytes` bytes together; the oldest go first.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: dict[str, Held] = {}
        self._ended: OrderedDict[str, int] = OrderedDict()
        self._remembered: OrderedDict[str, frozenset[int]] = OrderedDict()

    def hold(self, id: str, held: Held) -> None:
        """Hold a generation until it has ended and its time is over."""
        self._held[id] = held
        held.task.add_done_callback(lambda _: self._keep(id, held))

    def get(self, id: str) -> Held | None:
        return self._held.get(id)

    def check_free(self, id: str) -> None:
        """Raise InvalidRequest if a generation here has this id."""
        if id in self._held:
            raise InvalidRequest("id: a generation already has it; each needs its own", "id")

    @property
    def running(self) -> Collection[Held]:
        """Those that have not ended."""
        return [held for held in self._held.values() if not held.task.done()]

    def cancel(self, id: str, index: int | None) -> list[int]:
        """Cancel one image of a request, or with None all that have not ended; return the cancelled ones.

        Those cancelled before are among them. Empty where there is nothing to cancel: the request is not here or has
        finished, the image has ended or never was.
        """
        held = self._held.get(id)
        cancelled = held.cancel(index) if held else self._remembered.get(id, frozenset())
        return sorted(i for i in cancelled if index in (None, i))

    async def close(self) -> None:
        """Cancel all that runs and wait until it has ended."""
        running = [held.task for held in self.running]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _keep(self, id: str, held: Held) -> None:
        """Keep an ended generation for its time, and as long as there is room."""
        held.let_go()
        if not held.terms.keep_s:  # nobody can find it, and it takes no room from those that can be found
            self._forget(id)
            return
        self._ended[id] = held.log.size
        asyncio.get_running_loop().call_later(held.terms.keep_s, self._drop, id, held)
        while sum(self._ended.values()) > self.max_bytes:
            oldest = next(iter(self._ended))
            self._drop(oldest, self._held[oldest])

    def _drop(self, id: str, held: Held) -> None:
        """Forget an ended generation, unless that was done before: then another may have its id."""
        if self._held.get(id) is held:
            del self._ended[id]
            self._forget(id)

    def _forget(self, id: str) -> None:
        if cancelled := self._held.pop(id).cancel(None):
            self._remembered[id] = cancelled
        if len(self._remembered) > _REMEMBERED_REQUESTS:
            self._remembered.popitem(last=False)
