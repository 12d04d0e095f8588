"""A background task tied to a context.

Why not `asyncio.TaskGroup`: it waits for its tasks instead of cancelling them, and wraps errors, HTTP errors among
them, in an ExceptionGroup.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

logger = logging.getLogger("ray.serve")

T = TypeVar("T")


@asynccontextmanager
async def background(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run `work` as a task while the context is open. Leaving cancels it and waits until it has ended.

    The caller's own error or cancellation comes first, also while it waits; an error of the task is logged then. Else
    leaving raises the task's error.
    """
    task = asyncio.create_task(work)
    try:
        yield task
    except BaseException as error:
        failure = await _end(task)
        if failure is not None and failure is not error:
            logger.error("a background task failed too", exc_info=failure)
        raise
    if (failure := await _end(task)) is not None:
        raise failure


async def _end(task: asyncio.Task[Any]) -> BaseException | None:
    """Cancel a task, wait for its end and return its error. The caller's cancellation ends the wait."""
    task.cancel()
    # Not `await task`: the task's CancelledError and the caller's would look the same.
    await asyncio.wait([task])
    return None if task.cancelled() else task.exception()
