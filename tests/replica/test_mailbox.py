import asyncio
import threading

import pytest

from serve_app.errors import SlotFailed
from serve_app.messages import Generated, Preview, Progress, SlotEvent, Work
from serve_app.replica.mailbox import Mailbox
from tests.fakes import MODEL

GENERATED = Generated(8, 8, "image/png", "", Work(0, 0, 0, 0), MODEL)


async def test_a_slow_reader_finds_only_the_newest_of_each_kind() -> None:
    mailbox = Mailbox()

    def post_many() -> None:
        for step in range(1, 1001):
            mailbox.post(Progress(step))
            mailbox.post(Preview(step, 8, 8, "x" * 1000))
        mailbox.post(GENERATED)

    thread = threading.Thread(target=post_many)
    thread.start()
    await asyncio.to_thread(thread.join)
    events: list[SlotEvent] = [event async for event in mailbox.events()]
    assert events == [Progress(1000), Preview(1000, 8, 8, "x" * 1000), GENERATED]


async def test_a_failure_is_raised_after_what_came_before_it() -> None:
    mailbox = Mailbox()
    mailbox.post(Progress(1))
    mailbox.post(SlotFailed("internal", "no"))
    events = mailbox.events()
    assert await anext(events) == Progress(1)
    with pytest.raises(SlotFailed, match="no"):
        await anext(events)
