"""One request on its way: n slots, each followed by a task of its own, and one stream of what happens to them."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, Literal

from serve_app.errors import ReplicaLost, SlotCancelled, SlotFailed
from serve_app.fanout.admission import Admission
from serve_app.messages import Generated, Preview, Progress, Slot, SlotEvent
from serve_app.schemas import (
    CancelledEvent,
    ErrorDetail,
    Event,
    FailedEvent,
    Image,
    ImageEvent,
    NoPicture,
    Picture,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    Timings,
)

logger = logging.getLogger("ray.serve")

Generate = Callable[[Slot], AsyncGenerator[SlotEvent]]
"""Generates one slot: Pool.generate for the picture alone, or Pool.watch for previews too."""

_DEADLINE = ErrorDetail(
    type="deadline_exceeded", message="the request's deadline passed before this image was finished"
)
_CANCELLED = ErrorDetail(type="cancelled", message="the image was cancelled")
_LOST = ErrorDetail(
    type="replica_lost", message="the replica died while generating this image, and so did the one that tried again"
)
_INTERNAL = ErrorDetail(type="internal", message="the image could not be generated; the service's log says why")


class Generation:
    """Owns the state of one request from its place in line to its last image.

    Attributes:
        images: what has become of the slots that have ended, by index.
        cancelled: the indexes that `cancel` has cancelled.
        pixels: references to the pixels of the pictures, by index, for slots with `keep_pixels`.
        timings: where the picture that came last spent its time, zeros before the first; `total` counts from `started`.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        admission: Admission,
        capacity: Callable[[], int],
        started: float,
        on_retry: Callable[[], None],
    ) -> None:
        self._slots = slots
        self._admission = admission
        self._capacity = capacity
        self._started = started
        self._on_retry = on_retry
        self._inbox: asyncio.Queue[tuple[Slot, SlotEvent | NoPicture] | None] = asyncio.Queue()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._positions: dict[int, int] = {}
        self._begun: set[int] = set()
        self.images: dict[int, Image] = {}
        self.cancelled: set[int] = set()
        self.pixels: dict[int, Any] = {}
        self.timings = Timings(queue=0, encode_prompt=0, denoise=0, decode=0, encode=0, total=0)

    @contextmanager
    def in_line(self) -> Iterator[None]:
        """Hold a place in line for every slot that has not ended, for as long as the context is open."""
        for slot in self._slots:
            self._admission.join((self, slot.index), self._post_move)
        try:
            yield
        finally:
            for slot in self._slots:
                self._admission.leave((self, slot.index))

    def cancel(self, index: int | None) -> None:
        """Cancel one image, or with None all, unless it has ended; the others go on."""
        for slot in self._slots:
            if index in (None, slot.index) and slot.index not in self.images.keys() | self.cancelled:
                self.cancelled.add(slot.index)
                self._post_end(slot, "cancelled", _CANCELLED)
                if task := self._tasks.get(slot.index):
                    task.cancel()

    @asynccontextmanager
    async def generating(self, generate: Generate) -> AsyncIterator[None]:
        """Generate all slots for as long as the context is open; leaving it cancels what has not ended."""
        self._tasks = {
            slot.index: asyncio.create_task(self._follow(slot, generate))
            for slot in self._slots
            if slot.index not in self.cancelled
        }
        self._post_move()
        try:
            yield
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def events(self, deadline: float) -> AsyncGenerator[Event]:
        """Yield what happens to the slots while they are generated.

        It ends when each has ended, or when the deadline (monotonic) has passed.
        """
        while len(self.images) < len(self._slots):
            try:
                item = await self._next(deadline)
            except TimeoutError:
                for slot in self._slots:
                    for event in self._events_of(slot, _no_picture(slot, "failed", _DEADLINE)):
                        yield event
                return
            for event in self._queue_events() if item is None else self._events_of(*item):
                yield event

    async def _next(self, deadline: float) -> tuple[Slot, SlotEvent | NoPicture] | None:
        """Return what is in the inbox, even after the deadline: what has been generated counts. Raises TimeoutError."""
        if not self._inbox.empty():
            return self._inbox.get_nowait()
        # Not wait_for: in Python 3.11 it loses a cancellation that comes together with an item, and Serve cancels a
        # request and its calls together.
        async with asyncio.timeout(deadline - time.monotonic()):
            return await self._inbox.get()

    def _post_move(self) -> None:
        self._inbox.put_nowait(None)

    async def _follow(self, slot: Slot, generate: Generate) -> None:
        """Put a slot's events into the inbox, an end always among them."""
        try:
            try:
                await self._forward(slot, generate)
            except ReplicaLost:
                # The seed makes the second try the same picture.
                self._on_retry()
                await self._forward(slot, generate)
        except SlotFailed as error:
            self._post_end(slot, "failed", ErrorDetail(type=error.type, message=error.message))
        except SlotCancelled:
            self._post_end(slot, "cancelled", _CANCELLED)
        except asyncio.CancelledError:
            # Our own cancellation: all is said, or nobody listens any more. Or Serve's, of a call that still waited
            # for a replica.
            self._post_end(slot, "cancelled", _CANCELLED)
            raise
        except ReplicaLost:
            self._post_end(slot, "failed", _LOST)
        except Exception:
            logger.exception("slot with seed %d failed", slot.seed)
            self._post_end(slot, "failed", _INTERNAL)

    def _post_end(self, slot: Slot, status: Literal["failed", "cancelled"], error: ErrorDetail) -> None:
        self._inbox.put_nowait((slot, _no_picture(slot, status, error)))

    async def _forward(self, slot: Slot, generate: Generate) -> None:
        async with aclosing(generate(slot)) as events:
            async for event in events:
                self._inbox.put_nowait((slot, event))
                if isinstance(event, Generated):
                    return
        raise ReplicaLost("its events ended without a picture")

    def _queue_events(self) -> Iterator[Event]:
        """Yield the new places in line of the slots that still wait."""
        positions = self._admission.positions(self._capacity())
        for slot in self._slots:
            position = positions.get((self, slot.index))
            if position is None or slot.index in self._begun or position == self._positions.get(slot.index):
                continue
            self._positions[slot.index] = position
            yield QueuedEvent(index=slot.index, position=position)

    def _events_of(self, slot: Slot, news: SlotEvent | NoPicture) -> Iterator[Event]:
        """Yield the news of a slot: none once it has ended, and only the cancellation of a cancelled one."""
        if slot.index in self.images:
            return
        if slot.index in self.cancelled:
            news = _no_picture(slot, "cancelled", _CANCELLED)
        match news:
            case NoPicture():
                yield self._end_without_picture(news)
            case Generated():
                yield self._succeed(slot, news)
            case _:
                yield self._on_the_way(slot, news)

    def _on_the_way(self, slot: Slot, event: Progress | Preview) -> Event:
        self._begun.add(slot.index)
        where = {
            "index": slot.index,
            "seed": slot.seed,
            "step": event.step,
            "num_inference_steps": slot.recipe.num_inference_steps,
        }
        if isinstance(event, Progress):
            return ProgressEvent(**where)
        return PreviewEvent(
            **where, width=event.width, height=event.height, media_type="image/jpeg", b64_json=event.b64_json
        )

    def _succeed(self, slot: Slot, generated: Generated) -> Event:
        work, total = generated.work, time.monotonic() - self._started
        queue = total - (work.encode_prompt + work.denoise + work.decode + work.encode)
        self.timings = Timings(
            queue=max(0.0, queue),
            encode_prompt=work.encode_prompt,
            denoise=work.denoise,
            decode=work.decode,
            encode=work.encode,
            total=total,
        )
        self.pixels[slot.index] = generated.pixels
        picture = Picture(
            index=slot.index,
            seed=slot.seed,
            width=generated.width,
            height=generated.height,
            media_type=generated.media_type,
            b64_json=generated.b64_json,
        )
        self._record_end(picture)
        return ImageEvent(**dict(picture))

    def _end_without_picture(self, image: NoPicture) -> Event:
        self._record_end(image)
        kind = FailedEvent if image.status == "failed" else CancelledEvent
        return kind(index=image.index, seed=image.seed, error=image.error)

    def _record_end(self, image: Image) -> None:
        self.images[image.index] = image
        self._admission.leave((self, image.index))


def _no_picture(slot: Slot, status: Literal["failed", "cancelled"], error: ErrorDetail) -> NoPicture:
    return NoPicture(index=slot.index, seed=slot.seed, status=status, error=error)
