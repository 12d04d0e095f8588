"""Sends slots to replicas: in order of arrival, and the images of one request spread over all of them.

Written by hand, because Serve's default piles the slots of a request on one replica while others idle, its round robin
does not know the load, and its capacity queue ran the slots of a request one after the other.
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

from serve_app.messages import Call

_REMEMBERED_REQUESTS = 256
_UNSENT_S = 1.0
"""Forget a choice that was not sent within this time.

It is needed for a call that is cancelled just as its replica is chosen; every other choice is sent or replaced.
"""


@dataclass(frozen=True, slots=True)
class _RoutedCall:
    """A call that a routing task is finding a replica for. `place` is its order of arrival."""

    call: PendingRequest
    place: int


@dataclass(frozen=True, slots=True)
class _Choice:
    """The replica picked for a call."""

    call: PendingRequest
    replica_id: ReplicaID
    made: float


# FIFOMixin is needed: the calls of one request share a request id, and Serve alone would fulfil only one call an id.
class SpreadRouter(FIFOMixin, RequestRouter):
    """Prefers replicas with room in their batch, then with the fewest calls of the same request, then of all.

    A call goes to no replica that it must avoid, unless it must avoid all.

    A replica with `max_open_calls` gets none. The router holds this bound instead of `max_ongoing_requests`, because a
    replica that has reached that refuses every call, also those for its status and its health.

    Calls of the same request are compared before the load, because the load is out of date: it counts a call until some
    time after its result has arrived. By load alone, four images would not go one to each of four replicas that have
    just become idle.
    """

    def initialize_state(self, max_open_calls: int) -> None:
        self._max_open_calls = max_open_calls
        self._open: Counter[ReplicaID] = Counter()
        self._unsent: dict[int, _Choice] = {}
        self._requests: OrderedDict[str, dict[int, _Choice]] = OrderedDict()
        self._routed_calls: WeakKeyDictionary[asyncio.Task[Any], _RoutedCall] = WeakKeyDictionary()
        self._places = count()
        self._last_chosen: dict[ReplicaID, float] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Sequence[list[RunningReplica]]:
        if not candidate_replicas or pending_request is None:
            return [[replica] for replica in candidate_replicas]
        # Without this, Serve asks again in a busy loop while no replica has room.
        pending_request.routing_context.should_backoff = True
        routed = self._routed_calls.get(_current_task())
        if routed is None or routed.call is not pending_request:
            routed = self._routed_calls[_current_task()] = _RoutedCall(pending_request, next(self._places))
        ranked = self._rank_replicas(candidate_replicas, routed)
        if ranked:
            self._record_choice(pending_request, ranked[0].replica_id)
        return [[replica] for replica in ranked]

    def _rank_replicas(self, replicas: list[RunningReplica], routed: _RoutedCall) -> list[RunningReplica]:
        call, now = routed.call, time.monotonic()
        replicas = _without_avoided(replicas, call)
        self._unsent = {
            key: c
            for key, c in self._unsent.items()
            if now - c.made < _UNSENT_S and c.call is not call and not c.call.future.cancelled()
        }
        load = self._open + Counter(c.replica_id for c in self._unsent.values())
        free = sum(max(0, self._max_open_calls - load[r.replica_id]) for r in replicas)
        if self._count_earlier_calls(routed.place) >= free:
            return []
        siblings = Counter(
            c.replica_id for c in self._requests.get(_request_id(call), {}).values() if c.call is not call
        )

        def rank(replica: RunningReplica) -> tuple[bool, int, int, int, float]:
            id_ = replica.replica_id
            return (
                load[id_] >= self._max_open_calls // 2,  # one half is generated, the other is queued
                siblings[id_],
                load[id_],
                self.replica_queue_len_cache.get(id_) or 0,  # counts the calls of other ingress replicas too
                self._last_chosen.get(id_, 0.0),
            )

        return sorted((r for r in replicas if load[r.replica_id] < self._max_open_calls), key=rank)

    def _count_earlier_calls(self, place: int) -> int:
        """Return how many calls that came before this place are still looking for a replica."""
        earlier = (other.call for task, other in self._routed_calls.items() if other.place < place and not task.done())
        return sum(not call.future.done() and id(call) not in self._unsent for call in earlier)

    def _record_choice(self, call: PendingRequest, replica_id: ReplicaID) -> None:
        choice = _Choice(call, replica_id, time.monotonic())
        self._unsent[id(call)] = choice
        self._requests.setdefault(_request_id(call), {})[id(call)] = choice
        self._requests.move_to_end(_request_id(call))
        if len(self._requests) > _REMEMBERED_REQUESTS:
            self._requests.popitem(last=False)
        self._last_chosen[replica_id] = choice.made

    def _get_pending_request_matching_metadata(self, request_metadata: Any = None) -> PendingRequest | None:
        # Let each routing task fulfil the call that it chose a replica for. Serve gives the replica to the oldest call
        # instead, and the task then goes on to its next replica: two calls of a request may land on one.
        # `_count_earlier_calls` keeps the order of arrival.
        routed = self._routed_calls.get(_current_task())
        return routed.call if routed is not None and not routed.call.future.done() else None

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        if call := self._get_pending_request_matching_metadata():
            self._record_choice(call, replica.replica_id)  # not its first choice if that was full
        # Serve cancels a request's calls from another thread, possibly after we have looked whether a call is done. Do
        # not let it log that as an error.
        with suppress(asyncio.InvalidStateError):
            super()._fulfill_next_pending_request(replica, request_metadata)

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        self._open[replica_id] += 1
        # We cannot tell which choice was sent. Drop the newest, so that one never sent expires.
        sent = [(c.made, key) for key, c in self._unsent.items() if c.replica_id == replica_id and c.call.future.done()]
        if sent:
            del self._unsent[max(sent)[1]]

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        # Stay at 0 or above: Serve calls this also for a call that it failed to send, which was never counted.
        self._open[replica_id] = max(0, self._open[replica_id] - 1)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        alive = {replica.replica_id for replica in replicas}
        self._open = Counter({id_: calls for id_, calls in self._open.items() if id_ in alive})
        self._last_chosen = {id_: when for id_, when in self._last_chosen.items() if id_ in alive}


def _request_id(call: PendingRequest) -> str:
    """Return the id that the calls of one fan-out share."""
    return str(call.metadata.internal_request_id)


def _without_avoided(replicas: list[RunningReplica], call: PendingRequest) -> list[RunningReplica]:
    avoid = {id_ for arg in call.args if isinstance(arg, Call) for id_ in arg.avoid}
    return [r for r in replicas if r.replica_id.unique_id not in avoid] or replicas


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "routing happens in tasks"
    return task


def spread(max_open_calls: int) -> RequestRouterConfig:
    """Return a handle's routing: send each replica at most so many calls at a time, and queue the rest."""
    return RequestRouterConfig(
        request_router_class=SpreadRouter,
        request_router_kwargs={"max_open_calls": max_open_calls},
        # Serve's default backoff of up to 0.5 s leaves GPUs idle between two slots.
        initial_backoff_s=0.005,
        backoff_multiplier=1.5,
        max_backoff_s=0.02,
    )
