"""The events of one generation, numbered, for readers that come, go and come back."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from serve_app.fanout.events import end_event
from serve_app.readings import Entry
from serve_app.schemas import (
    CancelledEvent,
    CompletedEvent,
    ErrorEvent,
    Event,
    FailedEvent,
    Image,
    ImageEvent,
    PausedEvent,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    ResumedEvent,
    StartEvent,
)

_IMAGE_ENDS = (ImageEvent, FailedEvent, CancelledEvent)
_SUPERSEDED_BY: Mapping[type[Event], tuple[type[Event], ...]] = {
    QueuedEvent: (QueuedEvent, ProgressEvent, PreviewEvent, PausedEvent, *_IMAGE_ENDS),
    ProgressEvent: (ProgressEvent, PreviewEvent, PausedEvent, *_IMAGE_ENDS),
    PreviewEvent: (PreviewEvent, PausedEvent, *_IMAGE_ENDS),
    PausedEvent: (PreviewEvent, *_IMAGE_ENDS),  # until then its picture is the newest
    ResumedEvent: (QueuedEvent, ProgressEvent, PreviewEvent, *_IMAGE_ENDS),
}
"""What says nothing any more once a later event of the same image has come."""

_MOST_UNREAD = 64
"""How many superseded events are kept for readers that have not come to them yet."""

_OVERHEAD = 1000
"""Bytes: about what an event takes without its picture."""


@dataclass(eq=False, slots=True)
class _Reader:
    """A reader, and the number of the last event it got."""

    at: int


class EventLog:
    """Events in order, numbered from 1, without the superseded ones, so that its size is bounded.

    At most a sketch, a preview, a step and a picture of each image stay. Readers never wait for each other, and nobody
    for them: a superseded event goes once all who read at the time have it, or lag too far behind.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Event] = {}
        self._last = 0
        self._latest: dict[tuple[int, type[Event]], int] = {}
        self._superseded: list[int] = []
        self._readers: set[_Reader] = set()
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether the last event is there."""
        return isinstance(self._entries.get(self._last), CompletedEvent | ErrorEvent)

    @property
    def last(self) -> int:
        """The number of the last event so far."""
        return self._last

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return sum(_OVERHEAD + len(getattr(event, "b64_json", "")) for event in self._entries.values())

    def append(self, event: Event) -> None:
        """Add an event. A CompletedEvent or ErrorEvent must be the last."""
        self._last += 1
        self._entries[self._last] = event
        index = getattr(event, "index", -1)
        for kind, superseding in _SUPERSEDED_BY.items():
            if isinstance(event, superseding) and (index, kind) in self._latest:
                self._superseded.append(self._latest.pop((index, kind)))
        if type(event) in _SUPERSEDED_BY:
            self._latest[index, type(event)] = self._last
        self._forget_superseded()
        self._changed.set()
        self._changed = asyncio.Event()

    def conclude(self, start: StartEvent, images: Iterable[Image], end: CompletedEvent) -> None:
        """Add what is missing of the events of a generation that was given up; nothing where it came to its end."""
        if self.ended:
            return
        if not self._last:
            self.append(start)
        told = {event.index for event in self._entries.values() if isinstance(event, _IMAGE_ENDS)}
        for image in images:
            if image.index not in told:
                self.append(end_event(image))
        self.append(end)

    def after(self, number: int) -> list[Entry]:
        """Return what is kept after an event, 0 for all. After the last there is the last: readers need an end."""
        number = self._before_the_end(number)
        return [Entry(n, event) for n, event in self._entries.items() if n > number]

    @contextmanager
    def read(self, after: int) -> Iterator[AsyncGenerator[Entry]]:
        """Give what is kept after an event, as `after` does, and then what comes, to the end."""
        reader = _Reader(self._before_the_end(after))
        self._readers.add(reader)
        try:
            yield self._follow(reader)
        finally:
            self._readers.discard(reader)
            self._forget_superseded()

    async def wait(self, after: int, seconds: float) -> None:
        """Wait until there is an event after this one, or none will come, but not for longer than this."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._last <= after and not self.ended:
                    await self._changed.wait()

    async def _follow(self, reader: _Reader) -> AsyncGenerator[Entry]:
        while True:
            while (number := next((n for n in self._entries if n > reader.at), None)) is not None:
                reader.at = number
                yield Entry(number, self._entries[number])
            if self.ended:
                return
            await self._changed.wait()

    def _before_the_end(self, number: int) -> int:
        return min(number, self._last - 1) if self.ended else number

    def _forget_superseded(self) -> None:
        slowest = min((reader.at for reader in self._readers), default=self._last)
        unread = [number for number in self._superseded if number > slowest][-_MOST_UNREAD:]
        for number in set(self._superseded) - set(unread):
            del self._entries[number]
        self._superseded = unread
