"""Gives slots their turns: a place on a replica for each, in the order that admission says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass

from serve_app.errors import ADAPTER_GONE, ReplicaLost, SlotFailed, SlotReturned
from serve_app.fanout.admission import Admission
from serve_app.fanout.order import Ticket
from serve_app.fanout.placement import Placement
from serve_app.messages import ReplicaStatus


@dataclass(frozen=True, slots=True)
class _Asked:
    """A slot that waits for its turn, and the replicas that have failed it."""

    granted: "asyncio.Future[str]"
    avoid: Set[str]


class Dispatcher:
    """Lets no more slots out than the replicas take, so that what waits is here: in fair order, and easy to cancel.

    `replicas` are those that take slots now. Tell it of news by `look`.
    """

    def __init__(
        self, admission: Admission, replicas: Callable[[], Sequence[ReplicaStatus]], placement: Placement
    ) -> None:
        self._admission = admission
        self._replicas = replicas
        self._placement = placement
        self._asked: dict[Ticket, _Asked] = {}
        self._patience: dict[Ticket, asyncio.Timeout] = {}

    @asynccontextmanager
    async def turn(self, ticket: Ticket, failed: set[str]) -> AsyncIterator[str]:
        """Wait for a slot's turn and give the replica it may use for as long as the context is open.

        Raises SlotReturned if that replica is lost from sight. Avoids the replicas in `failed`, and adds the one that
        loses, returns or fails the slot; where its adapters are gone, all that have not read them too.
        """
        replica = await self._granted(ticket, failed)
        try:
            async with asyncio.timeout(None) as patience:
                self._patience[ticket] = patience
                yield replica
        except TimeoutError as error:
            if not patience.expired():
                raise
            failed.add(replica)
            raise SlotReturned("its replica is lost from sight") from error
        except (SlotReturned, ReplicaLost, SlotFailed) as error:
            failed.add(replica)
            if isinstance(error, SlotFailed) and error.type == ADAPTER_GONE:
                failed.update(other.id for other in self._replicas() if not ticket.files <= other.read)
            raise
        finally:
            self._patience.pop(ticket, None)
            self._end_turn(ticket)

    def look(self, lost: Set[str] = frozenset()) -> None:
        """Take slots back from the replicas that are lost from sight, and grant turns where there is room."""
        for ticket, replica in self._admission.out.items():
            if replica in lost and (patience := self._patience.pop(ticket, None)):
                patience.reschedule(asyncio.get_running_loop().time())
        self._grant()

    async def _granted(self, ticket: Ticket, avoid: Set[str]) -> str:
        asked = self._asked[ticket] = _Asked(asyncio.get_running_loop().create_future(), avoid)
        self._admission.wait(ticket)
        self._grant()
        try:
            return await asked.granted
        except asyncio.CancelledError:
            if asked.granted.done() and not asked.granted.cancelled():
                self._end_turn(ticket)  # granted and cancelled at once
            raise
        finally:
            self._asked.pop(ticket, None)

    def _grant(self) -> None:
        replicas = self._replicas()
        # A copy: going out changes the order.
        for ticket in list(self._admission.in_order()):
            if not self._placement.has_room(replicas, self._admission.out):
                return
            asked = self._asked.get(ticket)
            if asked is None or asked.granted.done():
                continue
            replica = self._placement.choose(ticket, replicas, self._admission.out, asked.avoid)
            if replica is not None:
                self._admission.go(ticket, replica)
                asked.granted.set_result(replica)

    def _end_turn(self, ticket: Ticket) -> None:
        self._admission.end_turn(ticket)
        self._grant()
