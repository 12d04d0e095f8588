"""Threads for work of one kind, so that it can neither block the event loop nor take all threads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """Some threads; where their work hangs, so do they alone."""

    def __init__(self, number: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(number, thread_name_prefix=name)
        self._free = asyncio.Semaphore(number)

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Return what a call returns that a thread makes as soon as one is free."""
        # Waits for a free thread here: the executor's own queue would keep the data of those that have given up.
        await self._free.acquire()
        loop, running = asyncio.get_running_loop(), self._threads.submit(work, *args)
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
        return await asyncio.wrap_future(running)
