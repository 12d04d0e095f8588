"""Carries events from the engine's threads to one reader on the event loop, with bounded memory."""

import asyncio
from collections.abc import AsyncIterator

from serve_app.messages import Generated, Kept, Paused, Preview, Progress, SlotEvent


class Mailbox:
    """Holds at most one event of each kind for a slot; a newer event replaces an unread older one."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._progress: Progress | None = None
        self._preview: Preview | None = None
        self._kept: Kept | None = None
        self._last: Generated | Paused | Exception | None = None

    def post(self, event: SlotEvent | Exception) -> None:
        """Add an event, or the error that there is instead of a picture. May be called from any thread."""
        self._loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: SlotEvent | Exception) -> None:
        match event:
            case Progress():
                self._progress = event
            case Preview():
                self._preview = event
            case Kept():
                self._kept = event
            case _:
                self._last = event
        self._filled.set()

    async def events(self) -> AsyncIterator[SlotEvent]:
        """Yield events; the last one is the picture or the sketch. Raises the error that was posted instead."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            progress, self._progress = self._progress, None
            preview, self._preview = self._preview, None
            kept, self._kept = self._kept, None
            if progress:
                yield progress
            if preview:
                yield preview
            if kept:
                yield kept
            if isinstance(self._last, Exception):
                raise self._last
            if self._last is not None:
                yield self._last
                return
