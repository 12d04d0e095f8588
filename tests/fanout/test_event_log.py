"""A generation's events, for readers that come and go."""

import asyncio

from serve_app.fanout.event_log import _MOST_UNREAD, EventLog
from serve_app.readings import Entry
from serve_app.schemas import (
    CompletedEvent,
    ErrorDetail,
    ErrorEvent,
    FailedEvent,
    ImageEvent,
    NoPicture,
    PreviewEvent,
    Problem,
    ProgressEvent,
    QueuedEvent,
    Timings,
)

TIMINGS = Timings(queue=0, encode_prompt=0, denoise=0, decode=0, encode=0, total=0)
END = CompletedEvent(id="a", timings=TIMINGS, warnings=[])


def queued(index: int, position: int) -> QueuedEvent:
    return QueuedEvent(index=index, position=position)


def progress(index: int, step: int) -> ProgressEvent:
    return ProgressEvent(index=index, seed=index, step=step, num_inference_steps=99)


def preview(index: int, step: int) -> PreviewEvent:
    return PreviewEvent(
        index=index,
        seed=index,
        step=step,
        num_inference_steps=99,
        width=8,
        height=8,
        media_type="image/jpeg",
        b64_json="p" * 50_000,
    )


def image(index: int) -> ImageEvent:
    return ImageEvent(index=index, seed=index, width=8, height=8, media_type="image/png", b64_json="i" * 100_000)


async def test_only_the_last_of_each_image_stays_under_its_number() -> None:
    log = EventLog()
    for event in (queued(0, 2), queued(1, 3), queued(0, 1), progress(0, 1), preview(0, 1), progress(0, 2)):
        log.append(event)
    assert log.after(0) == [Entry(2, queued(1, 3)), Entry(5, preview(0, 1)), Entry(6, progress(0, 2))]
    log.append(image(0))
    assert log.after(0) == [Entry(2, queued(1, 3)), Entry(7, image(0))]
    assert log.after(2) == [Entry(7, image(0))]
    assert log.after(99) == []


async def test_its_size_is_that_of_one_preview_or_picture_for_each_image() -> None:
    log = EventLog()
    for step in range(1, 99):
        for index in range(16):
            log.append(progress(index, step))
            log.append(preview(index, step))
    assert 16 * 50_000 < log.size < 16 * 52_000
    for index in range(16):
        log.append(image(index))
    assert 16 * 100_000 < log.size < 16 * 102_000


async def test_a_reader_that_keeps_up_gets_everything() -> None:
    log = EventLog()
    with log.read(0) as entries:
        for step in range(1, 40):
            log.append(progress(0, step))
            assert await anext(entries) == Entry(step, progress(0, step))
        log.append(END)
        assert [event async for _, event in entries] == [END]


async def test_a_burst_is_not_cut_for_those_who_read() -> None:
    log = EventLog()
    with log.read(0) as entries:
        for event in (progress(0, 1), preview(0, 1), image(0), END):
            log.append(event)
        assert [event.type async for _, event in entries] == ["progress", "preview", "image", "completed"]
    assert [event.type for _, event in log.after(0)] == ["image", "completed"]


async def test_a_reader_that_stops_holds_up_nobody_and_little_memory() -> None:
    log = EventLog()
    with log.read(0) as stalled, log.read(0) as quick:
        for step in range(1, 500):
            log.append(preview(0, step))
            assert (await anext(quick)).number == step
        assert log.size < (_MOST_UNREAD + 2) * 52_000
        log.append(image(0))
        log.append(END)
        assert [event.type async for _, event in stalled][-2:] == ["image", "completed"]
    assert log.size < 110_000


async def test_a_reader_waits_for_what_comes() -> None:
    log = EventLog()
    log.append(queued(0, 1))

    async def read(after: int) -> list[int | None]:
        with log.read(after) as entries:
            return [number async for number, _ in entries]

    readers = [asyncio.create_task(read(after)) for after in (0, 1, 3)]
    await asyncio.sleep(0.01)
    for event in (image(0), END):
        log.append(event)
        await asyncio.sleep(0.01)
    async with asyncio.timeout(1):
        assert await asyncio.gather(*readers) == [[1, 2, 3], [2, 3], []]


async def test_an_error_is_the_end_too() -> None:
    log = EventLog()
    assert not log.ended
    log.append(ErrorEvent(error=Problem(type="internal", message="no")))
    assert log.ended


async def test_waiting_ends_with_news_with_the_end_or_with_its_time() -> None:
    log = EventLog()
    async with asyncio.timeout(2):
        await log.wait(0, 0.05)
        waiting = asyncio.create_task(log.wait(0, 60))
        await asyncio.sleep(0.01)
        log.append(END)
        await waiting
        await log.wait(7, 60)


async def test_what_was_given_up_is_brought_to_its_end() -> None:
    log, why = EventLog(), ErrorDetail(type="cancelled", message="the image was cancelled")
    log.append(image(0))
    log.append(FailedEvent(index=1, seed=1, error=why))
    gone = [NoPicture(index=i, seed=i, status="cancelled", error=why) for i in range(3)]
    log.conclude(None, gone, END)  # type: ignore[arg-type]  # it has begun
    assert [(event.type, getattr(event, "index", None)) for _, event in log.after(0)] == [
        ("image", 0),
        ("failed", 1),
        ("cancelled", 2),
        ("completed", None),
    ]
    log.conclude(None, gone, END)  # type: ignore[arg-type]  # as above
    assert len(log.after(0)) == 4
