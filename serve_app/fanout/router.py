"""Which replica gets the next slot: the one with the fewest, every time.

Serve's default looks at two random replicas per call and so puts several slots of one fan-out on the same GPU while
others idle.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

_CHOICE_LIFETIME_S = 1.0


@dataclass(frozen=True, slots=True)
class _Choice:
    """A replica picked for a call that has not been sent yet."""

    replica_id: ReplicaID
    expires: float


# FIFOMixin first: the calls of one fan-out share a request id, and without it only one of them would be fulfilled.
class SpreadRouter(FIFOMixin, RequestRouter):
    """Ranks replicas by the calls they have and the calls just picked for them; ties go to the one that waited longest."""

    def initialize_state(self, **kwargs: object) -> None:
        self._choices: dict[int, _Choice] = {}
        self._last_chosen: dict[ReplicaID, float] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> Sequence[list[RunningReplica]]:
        if not candidate_replicas:
            return []
        now = time.monotonic()
        self._choices = {key: c for key, c in self._choices.items() if c.expires > now and key != id(pending_request)}
        picked = [c.replica_id for c in self._choices.values()]

        def rank(replica: RunningReplica) -> tuple[int, float]:
            # The cache holds what the replica last reported, other ingress replicas' calls included, plus our own sends.
            load = self.replica_queue_len_cache.get(replica.replica_id) or 0
            return load + picked.count(replica.replica_id), self._last_chosen.get(replica.replica_id, 0.0)

        ranked = sorted(candidate_replicas, key=rank)
        first = ranked[0].replica_id
        self._last_chosen[first] = now
        if pending_request is not None:
            self._choices[id(pending_request)] = _Choice(first, now + _CHOICE_LIFETIME_S)
            # Without it a fleet with no room left makes Serve ask again in a busy loop.
            pending_request.routing_context.should_backoff = True
        return [[replica] for replica in ranked]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        super().on_send_request(replica_id)
        sent = next((key for key, c in self._choices.items() if c.replica_id == replica_id), None)
        if sent is not None:
            del self._choices[sent]
