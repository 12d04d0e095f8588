"""Sends each call to the replica that it names."""

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

from serve_app.errors import SlotReturned
from serve_app.messages import Call


# FIFOMixin is for calls that name no replica: those of one request share a request id, and Serve alone would fulfil
# only one call an id.
class DirectedRouter(FIFOMixin, RequestRouter):
    """Obeys `Call.replica`: which one is best has been decided, and all that waits waits before the call.

    Serve's own routers do not know which calls belong together. Calls that name none, such as a script's, go to the
    replica with the shortest queue.
    """

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        named = next((arg.replica for arg in pending_request.args if isinstance(arg, Call) and arg.replica), None)
        if named is None:
            return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        replica = next((r for id_, r in self.curr_replicas.items() if id_.unique_id == named), None)
        if replica is None or is_retry:
            raise SlotReturned(f"replica {named} does not take calls")
        return replica

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            # Without this, Serve asks again in a busy loop while no replica has room.
            pending_request.routing_context.should_backoff = True
        queue_lengths = self.replica_queue_len_cache
        return [[r] for r in sorted(candidate_replicas, key=lambda r: queue_lengths.get(r.replica_id) or 0)]


def directed() -> RequestRouterConfig:
    """Return the routing of a handle whose calls say where they go."""
    return RequestRouterConfig(request_router_class=DirectedRouter)
