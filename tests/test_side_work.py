"""What goes wrong beside a picture is logged and said, and nothing more."""

import asyncio

import pytest

from serve_app.side_work import brief_side_work, side_work


def test_an_error_is_logged_and_its_loss_said(caplog: pytest.LogCaptureFixture) -> None:
    warnings: list[str] = []
    with side_work("there is no grid", warnings):
        raise ZeroDivisionError("why")
    with side_work("there is a grid", warnings):
        pass
    assert warnings == ["there is no grid"]
    assert "ZeroDivisionError: why" in caplog.text


async def test_what_hangs_is_given_up() -> None:
    warnings: list[str] = []
    async with asyncio.timeout(5), brief_side_work("there is no URL", warnings, 0.01):
        await asyncio.Event().wait()
    assert warnings == ["there is no URL"]


async def test_a_cancellation_is_none_of_these_errors() -> None:
    async def caller() -> None:
        async with brief_side_work("there is no URL", [], 60):
            await asyncio.Event().wait()

    calling = asyncio.create_task(caller())
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
