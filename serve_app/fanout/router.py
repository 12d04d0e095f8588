"""Which slot is next, and which replica gets it: in order of arrival, and the images of a request spread, every time.

Serve's default looks at two random replicas per call and so puts several slots of one fan-out on the same GPU while
others idle.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

_REMEMBERED_REQUESTS = 256
_UNSENT_S = 1.0
"""How long a choice may go unsent.

Only a call cancelled at that very moment needs it; every other is sent or given up.
"""


@dataclass(frozen=True, slots=True)
class _Looking:
    """A call that a routing task seeks a replica for. Tasks take calls as these arrive: `place` is their order."""

    call: PendingRequest
    place: int


@dataclass(frozen=True, slots=True)
class _Choice:
    """The replica picked for a call."""

    call: PendingRequest
    replica_id: ReplicaID
    made: float


# FIFOMixin, because the calls of one fan-out share a request id: matched by id, only one of them would be fulfilled.
class SpreadRouter(FIFOMixin, RequestRouter):
    """Prefers replicas with room in their batch, then with the fewest calls of the same request, then of all.

    A replica with `max_open_calls` gets none. This bound is the router's and not `max_ongoing_requests`, because at
    that a replica takes no calls at all, be they for its status or its health.

    A request's own calls come before the load, because the load is late: a call counts until some time after its result
    has arrived, and by it four images on four replicas that have just become idle would not go one to each.
    """

    def initialize_state(self, max_open_calls: int) -> None:
        self._max_open_calls = max_open_calls
        self._open: Counter[ReplicaID] = Counter()
        self._unsent: dict[int, _Choice] = {}
        self._requests: OrderedDict[str, dict[int, _Choice]] = OrderedDict()
        self._routed_by: WeakKeyDictionary[asyncio.Task[Any], _Looking] = WeakKeyDictionary()
        self._places = count()
        self._last_chosen: dict[ReplicaID, float] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Sequence[list[RunningReplica]]:
        if not candidate_replicas or pending_request is None:
            return [[replica] for replica in candidate_replicas]
        # Without it a pool with no room left makes Serve ask again in a busy loop.
        pending_request.routing_context.should_backoff = True
        looking = self._routed_by.get(_current_task())
        if looking is None or looking.call is not pending_request:
            looking = self._routed_by[_current_task()] = _Looking(pending_request, next(self._places))
        ranked = self._ranked(candidate_replicas, looking)
        if ranked:
            self._choose(pending_request, ranked[0].replica_id)
        return [[replica] for replica in ranked]

    def _ranked(self, replicas: list[RunningReplica], looking: _Looking) -> list[RunningReplica]:
        call, now = looking.call, time.monotonic()
        self._unsent = {
            key: c
            for key, c in self._unsent.items()
            if now - c.made < _UNSENT_S and c.call is not call and not c.call.future.cancelled()
        }
        load = self._open + Counter(c.replica_id for c in self._unsent.values())
        free = sum(max(0, self._max_open_calls - load[r.replica_id]) for r in replicas)
        if self._looking_before(looking.place) >= free:
            return []
        siblings = Counter(
            c.replica_id for c in self._requests.get(_request_id(call), {}).values() if c.call is not call
        )

        def rank(replica: RunningReplica) -> tuple[bool, int, int, int, float]:
            id_ = replica.replica_id
            return (
                load[id_] >= self._max_open_calls // 2,  # one half is generated, the other is next in line
                siblings[id_],
                load[id_],
                self.replica_queue_len_cache.get(id_) or 0,  # with the calls of other ingress replicas
                self._last_chosen.get(id_, 0.0),
            )

        return sorted((r for r in replicas if load[r.replica_id] < self._max_open_calls), key=rank)

    def _looking_before(self, place: int) -> int:
        """Return how many calls that came before this place are still looking for a replica."""
        earlier = (other.call for task, other in self._routed_by.items() if other.place < place and not task.done())
        return sum(not call.future.done() and id(call) not in self._unsent for call in earlier)

    def _choose(self, call: PendingRequest, replica_id: ReplicaID) -> None:
        choice = _Choice(call, replica_id, time.monotonic())
        self._unsent[id(call)] = choice
        self._requests.setdefault(_request_id(call), {})[id(call)] = choice
        self._requests.move_to_end(_request_id(call))
        if len(self._requests) > _REMEMBERED_REQUESTS:
            self._requests.popitem(last=False)
        self._last_chosen[replica_id] = choice.made

    def _get_pending_request_matching_metadata(self, request_metadata: Any = None) -> PendingRequest | None:
        # Each routing task fulfils the call it chose for. Handing its replica to the oldest call instead, as Serve
        # does, would send the task on to its next replica, and two calls of a fan-out to one. `_looking_before` keeps
        # their order.
        looking = self._routed_by.get(_current_task())
        return looking.call if looking is not None and not looking.call.future.done() else None

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        if call := self._get_pending_request_matching_metadata():
            self._choose(call, replica.replica_id)  # not its first choice if that was full
        # Serve cancels a request's calls from another thread, also between a look at a call and its fulfilment. That is
        # no error to log.
        with suppress(asyncio.InvalidStateError):
            super()._fulfill_next_pending_request(replica, request_metadata)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        self._open[replica_id] += 1
        # The newest it may have been: a choice that is never sent must grow old, not be handed on from call to call.
        sent = [(c.made, key) for key, c in self._unsent.items() if c.replica_id == replica_id and c.call.future.done()]
        if sent:
            del self._unsent[max(sent)[1]]

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        # Also called where sending itself failed, without a call that was counted.
        self._open[replica_id] = max(0, self._open[replica_id] - 1)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        alive = {replica.replica_id for replica in replicas}
        self._open = Counter({id_: calls for id_, calls in self._open.items() if id_ in alive})
        self._last_chosen = {id_: when for id_, when in self._last_chosen.items() if id_ in alive}


def _request_id(call: PendingRequest) -> str:
    """Return the id that the calls of one fan-out share."""
    return str(call.metadata.internal_request_id)


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "routing happens in tasks"
    return task


def spread(max_open_calls: int) -> RequestRouterConfig:
    """Return how a handle routes: each replica takes so many of its calls at a time; more wait in the router."""
    return RequestRouterConfig(
        request_router_class=SpreadRouter,
        request_router_kwargs={"max_open_calls": max_open_calls},
        # Serve's default backoff of up to 0.5 s leaves GPUs idle between two slots.
        initial_backoff_s=0.005,
        backoff_multiplier=1.5,
        max_backoff_s=0.02,
    )
