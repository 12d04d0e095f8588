"""A task beside a context: who is told of whose end."""

import asyncio
from contextlib import suppress

import pytest

from serve_app.background import background


async def forever() -> None:
    await asyncio.Event().wait()


async def slow_to_end(seconds: float) -> str:
    """Ignore the cancellation for a while."""
    until = asyncio.get_running_loop().time() + seconds
    while (left := until - asyncio.get_running_loop().time()) > 0:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(left)
    return "ended"


async def fails_at_its_end() -> None:
    try:
        await forever()
    finally:
        raise LookupError("the task's own")


async def test_leaving_cancels_the_task() -> None:
    async with background(forever()) as task:
        await asyncio.sleep(0)
    assert task.cancelled()


async def test_a_caller_that_is_cancelled_while_the_task_ends_is_cancelled_at_once() -> None:
    tasks: list[asyncio.Task[str]] = []

    async def caller() -> None:
        async with background(slow_to_end(0.3)) as task:
            tasks.append(task)
            await asyncio.sleep(0)

    calling = asyncio.create_task(caller())
    await asyncio.sleep(0.05)
    calling.cancel()
    await asyncio.wait([calling], timeout=0.1)
    assert calling.cancelled()
    assert await tasks[0] == "ended"


async def test_a_cancellation_that_comes_together_with_the_end_of_the_task_is_not_lost() -> None:
    async def caller() -> None:
        async with background(forever()):
            await asyncio.sleep(0)
        await forever()

    calling = asyncio.create_task(caller())
    for _ in range(2):
        await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait([calling], timeout=1)
    assert calling.cancelled()


async def test_the_callers_error_comes_before_the_tasks_which_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def caller() -> None:
        async with background(fails_at_its_end()):
            await asyncio.sleep(0)
            raise ValueError("the caller's own")

    with pytest.raises(ValueError, match="the caller's own"):
        await caller()
    assert "the task's own" in caplog.text


async def test_an_error_that_the_caller_has_seen_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise LookupError("the task's own")

    with pytest.raises(LookupError, match="the task's own"):
        async with background(fails()) as task:
            await task
    assert not caplog.text


async def test_the_tasks_error_is_the_callers_where_there_is_no_other() -> None:
    with pytest.raises(LookupError, match="the task's own"):
        async with background(fails_at_its_end()):
            await asyncio.sleep(0)


async def test_a_task_that_ignores_its_cancellation_is_waited_for() -> None:
    async with background(slow_to_end(0.05)) as task:
        await asyncio.sleep(0)
    assert task.result() == "ended"
