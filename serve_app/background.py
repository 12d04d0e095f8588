"""A background task tied to a context.

Why not `asyncio.TaskGroup`: it waits for its tasks instead of cancelling them, and wraps errors, HTTP errors among
them, in an ExceptionGroup.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def background(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run `work` as a task while the context is open. Leaving cancels it and waits until it has ended."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
