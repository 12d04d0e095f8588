"""Waits for what other tasks of the same event loop do."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Return when a condition holds; fail if it never does. A busy machine may take longer than any fixed time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)
