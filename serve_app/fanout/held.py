"""A generation that outlives the responses that read it."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import aclosing, asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Self

from serve_app.errors import NotFound
from serve_app.fanout.event_log import EventLog
from serve_app.fanout.generation import Generation
from serve_app.fanout.sketches import Branch
from serve_app.readings import Entry, Part, Reading
from serve_app.recipe import Changes, Recipe
from serve_app.schemas import OnDisconnect, ResponseFormat

_LEASE_S = 2.0
"""How long one question from another ingress replica counts as reading: its reader asks at least as often."""

_LARGEST_PART = 2**23
"""Bytes: about what another ingress replica gets at once."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a client said of its generation besides the pictures.

    Once nobody reads, it goes on for `grace_s` seconds; after its end it is kept for `keep_s`.
    """

    response_format: ResponseFormat
    grace_s: float
    keep_s: float

    @classmethod
    def of(cls, response_format: ResponseFormat, on_disconnect: OnDisconnect, keep_s: float) -> Self:
        grace_s = {"cancel": 0.0, "wait": keep_s, "finish": math.inf}[on_disconnect]
        return cls(response_format, grace_s, keep_s)


Branching = Callable[[Recipe, int, Changes], Awaitable[Branch]]
"""Returns what leaves a recipe after a step for other settings. Raises ServiceError."""


class Held:
    """A generation with the task that runs it, its events, and a count of who reads them."""

    def __init__(
        self,
        generation: Generation,
        log: EventLog,
        run: Coroutine[Any, Any, None],
        terms: Terms,
        created: int,
        branch: Branching,
    ) -> None:
        self._branch = branch
        self._generation: Generation | None = generation
        self._cancelled: frozenset[int] = frozenset()
        self.log = log
        self.terms = terms
        # In a context of its own: Ray and Serve cancel every call made in that of a request together with the request.
        self.task = asyncio.create_task(run, context=Context())
        self._created = created
        self._readers = 0
        self._abandoning: asyncio.TimerHandle | None = None

    def cancel(self, index: int | None) -> frozenset[int]:
        """Cancel one image, or with None all that have not ended; return all that were cancelled so far."""
        if self._generation:
            self._generation.cancel(index)
            self._cancelled = self._generation.cancelled
        return self._cancelled

    async def resume(self, images: Collection[int] | None, changes: Changes) -> list[int]:
        """Let paused images go on, with None all, with these changes from here on; return which do.

        Raises NotFound, NotPaused, and ServiceError where the changes cannot be made.
        """
        branch = None
        if changes.settings:
            branch = await self._branch(*self._running.paused_at(images), changes)
        return self._running.resume(images, branch)

    @property
    def _running(self) -> Generation:
        """The generation. Raises NotFound once it has ended."""
        if self._generation is None:
            raise NotFound("the generation has ended")
        return self._generation

    @property
    def paused(self) -> tuple[int, int]:
        """How many images are paused, and how many bytes are kept of them or may be."""
        return (self._generation.paused, self._generation.kept_bytes) if self._generation else (0, 0)

    def shut_down(self, only_paused: bool = False) -> None:
        """Let images fail that have not ended, all or those that wait for somebody, because the service ends."""
        if self._generation:
            self._generation.shut_down(only_paused)

    def let_go(self) -> None:
        """Keep of an ended generation only what can be read: it refers to pixels in the object store."""
        self._generation = None

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Count as a reader while the context is open. Leaving it as the last one may end the generation."""
        self._join()
        try:
            yield
        finally:
            self._leave()
            if self.task.cancelling() or self.log.ended:
                await asyncio.wait([self.task])

    @asynccontextmanager
    async def read(self, after: int = 0) -> AsyncIterator[Reading]:
        """Give the events after one, 0 for all, to a reader."""
        with self.log.read(after) as entries:
            async with self.reading(), aclosing(entries):
                yield Reading(entries, self.terms.response_format)

    async def next_part(self, after: int, wait_s: float) -> Part:
        """Return what is kept after an event, as soon as there is something, for another ingress replica."""
        self._join()
        asyncio.get_running_loop().call_later(_LEASE_S, self._leave)
        await self.log.wait(after, wait_s)
        return self.part(after, _LARGEST_PART)

    def part(self, after: int = 0, most_bytes: float = math.inf) -> Part:
        """Return what is kept after an event; with a limit maybe only the first of it, but at least one event."""
        entries, size = self.log.after(after), 0
        taken: list[Entry] = []
        for entry in entries:
            size += len(getattr(entry.event, "b64_json", ""))
            if taken and size > most_bytes:
                break
            taken.append(entry)
        ended = self.log.ended and len(taken) == len(entries)
        return Part(tuple(taken), ended, self.log.last, self._created, self.terms.response_format)

    def _join(self) -> None:
        self._readers += 1
        if self._abandoning:
            self._abandoning.cancel()

    def _leave(self) -> None:
        self._readers -= 1
        if self._readers or self.log.ended or self.terms.grace_s == math.inf:
            return
        if self.terms.grace_s:
            self._abandoning = asyncio.get_running_loop().call_later(self.terms.grace_s, self.task.cancel)
        else:
            self.task.cancel()
