"""A fan-out whose requests ask for sketches: its pool makes these at once, and pictures when it is told to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from serve_app.config import AppArgs, TrajectoriesConfig
from serve_app.schemas import Event, GenerateRequest, PausedEvent
from tests.fakes import FakePool, Metrics, NoPeers, OneModel

ID = "01234567-89ab-4cde-8f01-23456789abcd"
E = TypeVar("E", bound=Event)


def request(**changes: Any) -> GenerateRequest:
    return GenerateRequest(
        **{"prompt": "a", "num_images": 3, "seed": 0, "preview_every": 0, "pause_after": 6, "id": ID, **changes}
    )


class Studio:
    """A fan-out and the events of one request for sketches."""

    def __init__(self, peers: NoPeers | None = None, **settings: Any) -> None:
        self.pool = FakePool()
        self.metrics = Metrics()
        args = AppArgs(trajectories=TrajectoriesConfig(**settings))
        self.service = OneModel(self.pool, args, self.metrics, peers)
        self.events: list[Event] = []
        self._came = asyncio.Event()

    @asynccontextmanager
    async def sketching(self, **changes: Any) -> AsyncIterator["Studio"]:
        """Open a request; give this when all its images are paused."""
        asked = request(**changes)
        async with asyncio.timeout(10), self.service.open(asked) as reading:
            reader = asyncio.create_task(self._read(reading.entries))
            await self.told(PausedEvent, asked.num_images)
            yield self
            await reader

    async def _read(self, entries: Any) -> None:
        async for entry in entries:
            self.events.append(entry.event)
            self._came.set()
        self._came.set()

    async def told(self, kind: type[E], number: int = 1) -> list[E]:
        """Wait for so many events of a kind."""
        while len(found := self._told(kind)) < number:
            self._came.clear()
            await self._came.wait()
        return found

    def _told(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def resume(self, *images: int) -> list[int]:
        return (await self.service.resume_images(ID, images or None)).resumed

    @property
    def last(self) -> Event:
        return self.events[-1]


async def wait(event: asyncio.Event) -> None:
    await event.wait()
