"""Leaves pixels in the object store, from where the ingress takes them for a contact sheet."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray

logger = logging.getLogger("ray.serve")


class PixelStore:
    """Puts pixels into Ray's object store, which may be full: a put waits for room, on a thread and for a bounded time.

    They are beside the picture, so their loss only costs the contact sheet.
    """

    def __init__(self, put: Callable[[Any], Any] = ray.put, timeout_s: float = 5.0) -> None:
        self._put = put
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pixels")
        self._overdue: Future[Any] | None = None

    async def put(self, pixels: Any) -> Any:
        """Return a reference to pixels. None: they could not be stored in time, or pixels before them still wait."""
        if self._overdue and not self._overdue.done():
            return None
        putting = self._thread.submit(self._put, pixels)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(putting)
        except Exception:
            logger.warning("the pixels of an image could not be stored for a contact sheet", exc_info=True)
            if putting.running():
                self._overdue = putting
            return None
