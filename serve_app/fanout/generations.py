"""The generations of an ingress replica, whichever model they are of: found, read, cancelled and ended by their id."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import aclosing, asynccontextmanager

from serve_app.config import LiveSettings
from serve_app.errors import InvalidRequest, NotFound, ServiceError, ShuttingDown, TooManyPaused
from serve_app.fanout.answers import answer_of
from serve_app.fanout.held import Held
from serve_app.fanout.peers import Peers
from serve_app.fanout.registry import Registry
from serve_app.fanout.relay import entries_from, part_after, whole
from serve_app.fanout.slot_record import most_kept
from serve_app.messages import Slot
from serve_app.readings import Found, Part, Reading
from serve_app.recipe import NO_CHANGES, Changes
from serve_app.schemas import Cancelled, Resumed

_DRAIN_INTERVAL_S = 0.05
_ENDING_S = 5.0
"""How long answers may take to be put together once their images have ended."""


class Generations:
    """What this ingress replica generates, and what its peers do. All that is kept here takes at most so many bytes."""

    def __init__(self, peers: Peers, args: LiveSettings) -> None:
        self._peers = peers
        self._here = Registry(args.streams.max_kept_bytes)
        self.most_paused_bytes = args.trajectories.max_bytes
        self.draining = False

    def take(self, args: LiveSettings) -> None:
        """Keep as much of ended generations and of paused images as these settings say from now on."""
        self._here.max_bytes = args.streams.max_kept_bytes
        self.most_paused_bytes = args.trajectories.max_bytes

    def require_running(self) -> None:
        """Raise ShuttingDown once no new ones are taken."""
        if self.draining:
            raise ShuttingDown

    def check_free(self, id: str) -> None:
        """Raise InvalidRequest if a generation here has this id."""
        self._here.check_free(id)

    def require_keeping(self, slots: Sequence[Slot], canvas_bytes: int) -> None:
        """Raise TooManyPaused if there is no room for what these slots keep while they are paused.

        That is their states, and the canvas that they share. Raises InvalidRequest if there never is.
        """
        needed, most = sum(map(most_kept, slots)) + canvas_bytes if slots else 0, self.most_paused_bytes
        limit = f"the limit of {most} bytes (trajectories.max_bytes)"
        field = "keep" if any(slot.score_by for slot in slots) else "pause_after"
        if needed > most:
            raise InvalidRequest(
                f"{field}: paused, {len(slots)} such images could exceed {limit}; ask for fewer or smaller ones, "
                f"or leave out {field}",
                field,
            )
        if needed and needed + (kept := self.paused[1]) > most:
            raise TooManyPaused(
                f"{field}: paused images keep {kept} bytes, {len(slots)} more could exceed {limit}; resume or "
                f"cancel some, ask for fewer or smaller ones, or leave out {field}",
                field,
            )

    @property
    def paused(self) -> tuple[int, int]:
        """How many images are paused here, and how many bytes are kept of them or may be."""
        counts = [held.paused for held in self._here.running]
        return sum(images for images, _ in counts), sum(kept for _, kept in counts)

    def hold(self, id: str, held: Held) -> None:
        """Hold a generation until it has ended and its time is over."""
        self._here.hold(id, held)

    @asynccontextmanager
    async def reopen(self, id: str, after: int) -> AsyncIterator[Reading]:
        """Read a generation that was opened before from after an event, 0 for the beginning.

        Any ingress replica may hold it. Raises NotFound, NotReady, InvalidRequest on the way in.
        """
        if held := self._here.get(id):
            _require_event(after, held.log.last)
            async with held.read(after) as reading:
                yield reading
        else:
            part = await part_after(self._peers, id, after)
            _require_event(after, part.last)
            async with aclosing(entries_from(self._peers, id, part, after)) as entries:
                yield Reading(entries, part.response_format)

    async def find(self, id: str) -> Found:
        """Return the answer of a generation so far. Raises the ServiceError it ended with, NotFound, NotReady."""
        held = self._here.get(id)
        part = held.part() if held else await whole(self._peers, id)
        return Found(answer_of(part), part.response_format)

    async def cancel(self, id: str, index: int | None = None) -> Cancelled:
        """Cancel one image of a request, or with None all that have not ended.

        Any ingress replica may hold the request. Raises NotFound, NotReady.
        """
        cancelled = self.cancel_here(id, index) or await self._peers.cancel(id, index)
        if not cancelled:
            raise NotFound("there is nothing to cancel by this name: it is unknown or has finished")
        return Cancelled(id=id, cancelled=cancelled)

    def cancel_here(self, id: str, index: int | None) -> list[int]:
        """Cancel as `cancel` does, if this ingress replica holds the request; return what is cancelled, if anything."""
        return self._here.cancel(id, index)

    async def resume_images(
        self, id: str, images: Collection[int] | None = None, changes: Changes = NO_CHANGES
    ) -> Resumed:
        """Let paused images of a request go on, with None all that are paused, maybe with other settings.

        Any ingress replica may hold the request. Raises NotFound, NotPaused, NotReady, InvalidRequest.
        """
        said = await self.resume_images_here(id, images, changes)
        if said is None:
            said = await self._peers.resume_images(id, images, changes)
        if said is None:
            raise NotFound("there is no such generation: it is unknown or has ended")
        if isinstance(said, ServiceError):
            raise said
        return Resumed(id=id, resumed=said)

    async def resume_images_here(
        self, id: str, images: Collection[int] | None, changes: Changes
    ) -> list[int] | ServiceError | None:
        """Do as `resume_images` and return which go on, or what it raises; None if the request is not here."""
        held = self._here.get(id)
        if held is None:
            return None
        try:
            return await held.resume(images, changes)
        except ServiceError as error:
            return error

    async def next_part_here(self, id: str, after: int, wait_s: float) -> Part | None:
        """Return what a generation has after an event, waiting for it so long, if this ingress replica holds it."""
        held = self._here.get(id)
        return await held.next_part(after, wait_s) if held else None

    def end_paused(self) -> None:
        """Let images fail that wait for somebody: nobody can say any more that they go on."""
        for held in self._here.running:
            held.shut_down(only_paused=True)

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, and return when the running ones have ended.

        What has not after `grace_s` seconds fails as `shutting_down`, what is paused does at once; the images finished
        by then are returned, with their grid if it is made within some seconds.
        """
        self.draining = True
        if not await self._ended(grace_s):
            for held in self._here.running:
                held.shut_down()
            if not await self._ended(_ENDING_S):
                await self.close()

    async def close(self) -> None:
        """Cancel all that runs and wait until it has ended."""
        await self._here.close()

    async def _ended(self, seconds: float) -> bool:
        """Wait at most so long until no request runs, and return whether none does."""
        until = time.monotonic() + seconds
        while self._here.running and time.monotonic() < until:
            self.end_paused()
            await asyncio.sleep(_DRAIN_INTERVAL_S)
        return not self._here.running


def _require_event(number: int, last: int) -> None:
    """Raise InvalidRequest if a generation has had no such event. A reader would wait for it, or get nothing at all."""
    if number > last:
        raise InvalidRequest(f"Last-Event-ID: {number} is above the last event so far, {last}", "Last-Event-ID")
