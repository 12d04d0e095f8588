"""The attempts to generate a slot: on one replica after another, until one has done it."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing

from serve_app.errors import ReplicaLost, SlotFailed, SlotReturned
from serve_app.fanout.events import INTERNAL, REPLICA_LOST, failed
from serve_app.fanout.order import Ticket
from serve_app.fanout.slot_record import SlotRecord
from serve_app.fanout.tries import Again, Tries
from serve_app.messages import Generated, Kept, Paused, Preview, Progress, Slot, SlotEvent
from serve_app.schemas import ErrorDetail, NoPicture

logger = logging.getLogger("ray.serve")

Generate = Callable[[Slot, str], AsyncGenerator[SlotEvent]]
"""Generates one slot on the replica named: by Pool.generate for the picture alone, or Pool.stream for previews too."""

Turn = Callable[[Ticket, set[str]], AbstractAsyncContextManager[str]]
"""Gives a slot a replica to use: Dispatcher.turn."""

_BETWEEN_TRIES_S = 0.05
"""So that a slot that every replica returns at once does not keep all busy."""


class ToldToWait:
    """News: the slot is no longer on a replica and waits for another."""


OfSlot = Progress | Preview | Paused | Generated | NoPicture | ToldToWait
"""What happens to a slot."""


class Attempts:
    """Has slots generated and posts what happens to them."""

    def __init__(
        self, turn: Turn, on_retry: Callable[[Again, int], None], post: Callable[[SlotRecord, OfSlot], None]
    ) -> None:
        """`on_retry` hears why a slot is generated again, and how many steps of its last try need not be."""
        self._turn = turn
        self._on_retry = on_retry
        self._post = post

    async def generate(self, record: SlotRecord, generate: Generate) -> None:
        """Post a slot's events; the last ends or pauses it. Who cancels this has posted the end, or nobody listens."""
        try:
            await self._generate_somewhere(record, generate)
        except SlotFailed as error:
            self._post_failure(record, ErrorDetail(type=error.type, message=error.message))
        except ReplicaLost:
            self._post_failure(record, REPLICA_LOST)
        except Exception:
            logger.exception("%s failed", record.slot.name)
            self._post_failure(record, INTERNAL)

    async def _generate_somewhere(self, record: SlotRecord, generate: Generate) -> None:
        """Post the events of a slot on one replica after another, until one has generated it.

        The seed makes every try the same picture, also where one goes on from what another has kept. Raises ReplicaLost
        or SlotFailed when too many have died, broken down or had no memory for it.
        """
        avoided: set[str] = set()
        tries = Tries()
        while True:
            began = record.slot.first_step
            try:
                async with self._turn(record.ticket, avoided) as replica:
                    record.replica = replica
                    sketch = await self._post_events(record, generate, replica)
                if sketch is not None:  # only now: it has no place on a replica any more
                    self._post(record, sketch)
                return
            except (SlotReturned, ReplicaLost, SlotFailed) as error:
                again = tries.again_after(error)
            logger.warning(
                "%s is generated again: replica %s: %s%s", record.slot.name, record.replica, again, _saved(record)
            )
            # Less than before where another model began anew.
            self._on_retry(again, max(0, record.slot.first_step - began))
            self._post(record, ToldToWait())
            await asyncio.sleep(_BETWEEN_TRIES_S)

    async def _post_events(self, record: SlotRecord, generate: Generate, replica: str) -> Paused | None:
        """Post the events of one call, and return the sketch that it ends with, if any.

        Raises ReplicaLost where it ends with neither a sketch nor a picture.
        """
        began = time.monotonic() - record.kept_after_s
        async with aclosing(generate(record.slot, replica)) as events:
            async for event in events:
                match event:
                    case Kept():
                        record.keep(event, time.monotonic() - began)
                    case Paused():
                        return event
                    case _:
                        self._post(record, event)
                        if isinstance(event, Generated):
                            return None
        raise ReplicaLost("its events ended without a picture")

    def _post_failure(self, record: SlotRecord, error: ErrorDetail) -> None:
        self._post(record, failed(record.slot, error))


def _saved(record: SlotRecord) -> str:
    """Return in words what need not be done again."""
    kept, steps = record.slot.kept, record.slot.recipe.num_inference_steps
    if kept is None:
        return ""
    return f"; it goes on after step {kept.step} of {steps}, which saves {record.kept_after_s:.1f} s"
