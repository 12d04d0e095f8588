"""Leases: a replica works on a call only while its caller lives and waits for it."""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from serve_app.errors import SlotFailed, SlotReturned
from serve_app.messages import Call, OpenCalls, actor_of

LEASE_S = 4.0
"""After how many seconds without a word from a caller the replica finds out whether it lives."""

CHECK_INTERVAL_S = 0.5
"""How often to call `Leases.drop_late` and `Leases.drop_lost`."""

Drop = Callable[[Exception | None], None]
"""Ends the work on a call, with the error that its caller gets; with None nobody listens."""

Lives = Callable[[str], Awaitable[bool]]
"""Says whether the actor of this name lives."""


@dataclass(eq=False, slots=True)
class _Lease:
    call: Call
    drop: Drop
    deadline: float


class Leases:
    """The calls that a replica works on. Drops those whose caller has given up, is late or has died.

    A caller renews all its leases with each poll and each call. One that has been silent for `LEASE_S` is not dropped
    while its actor lives: Serve does not pass on its polls while a replica is being stopped.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._leases: set[_Lease] = set()
        self._heard: dict[str, float] = {}

    @contextmanager
    def held(self, call: Call, drop: Drop) -> Iterator[None]:
        """Hold a lease for a call while the context is open. `drop` is called at most once, from the event loop."""
        self._heard[call.caller] = self._clock()
        lease = _Lease(call, drop, self._clock() + call.timeout_s)
        self._leases.add(lease)
        try:
            yield
        finally:
            self._leases.discard(lease)

    def poll(self, open_calls: OpenCalls) -> None:
        """Renew a caller's leases, and drop the calls it no longer waits for.

        Their cancellation was lost, or is still on its way.
        """
        self._heard[open_calls.caller] = self._clock()
        self._drop(open_calls.has_given_up, None)

    def of_others(self, caller: str) -> int:
        """Return how many leases other callers hold."""
        return sum(lease.call.caller != caller for lease in self._leases)

    def drop_late(self) -> None:
        """Drop the calls whose time is over."""
        now = self._clock()
        for lease in [lease for lease in self._leases if lease.deadline <= now]:
            self._end(lease, SlotFailed("deadline_exceeded", "the image was not finished in time"))

    async def drop_lost(self, lives: Lives) -> None:
        """Drop the calls of callers that have died. Takes as long as the answers do."""
        for caller in self._silent():
            actor = actor_of(caller)
            if actor is not None and await lives(actor):
                self._heard[caller] = self._clock()
            else:
                # What is no actor may live all the same; then the slot is generated elsewhere.
                self._drop(partial(_is_by, caller), SlotReturned("its caller does not poll") if actor is None else None)

    def _silent(self) -> set[str]:
        """Return the callers that should have been heard of; forget those with no calls."""
        callers = {lease.call.caller for lease in self._leases}
        since = self._clock() - LEASE_S
        self._heard = {caller: heard for caller, heard in self._heard.items() if caller in callers}
        return {caller for caller in callers if self._heard[caller] <= since}

    def _drop(self, which: Callable[[Call], bool], error: Exception | None) -> None:
        for lease in [lease for lease in self._leases if which(lease.call)]:
            self._end(lease, error)

    def _end(self, lease: _Lease, error: Exception | None) -> None:
        self._leases.discard(lease)
        lease.drop(error)


def _is_by(caller: str, call: Call) -> bool:
    return call.caller == caller
