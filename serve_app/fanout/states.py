"""The states of a slot and of its generation, and which may follow which.

The values are the words of the API: an image's `status` is the last state of its slot.
"""

from collections.abc import Mapping

from serve_app.states import State


class SlotState(State):
    """Where a slot is, as its client is told. It ends once, in one of the last three."""

    QUEUED = "queued"
    """No replica has reported a step yet, or none of the one it was sent to last."""
    RUNNING = "running"
    PAUSED = "paused"
    """Its sketch is done, and it is nowhere: neither in the queue nor on a replica.

    It goes on if somebody, or its request's `keep`, says so.
    """
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def following(self) -> frozenset["SlotState"]:
        return _NEXT_OF_SLOT[self]


class GenerationState(State):
    """Where a request is as a whole. How it ended is the sum of its slots."""

    ADMITTED = "admitted"
    """Its slots are in the queue; no call has been made."""
    RUNNING = "running"
    ENDED = "ended"
    """Every slot has ended."""

    @property
    def following(self) -> frozenset["GenerationState"]:
        return _NEXT_OF_GENERATION[self]


_NEXT_OF_SLOT: Mapping[SlotState, frozenset[SlotState]] = {
    # Straight to SUCCEEDED and PAUSED: a call for the picture alone reports no steps, nor does a quick one.
    SlotState.QUEUED: frozenset(
        {SlotState.RUNNING, SlotState.PAUSED, SlotState.SUCCEEDED, SlotState.FAILED, SlotState.CANCELLED}
    ),
    # Back to QUEUED: its replica is lost or returns it, and another generates it, from the start or a kept step.
    SlotState.RUNNING: frozenset(
        {SlotState.QUEUED, SlotState.PAUSED, SlotState.SUCCEEDED, SlotState.FAILED, SlotState.CANCELLED}
    ),
    SlotState.PAUSED: frozenset({SlotState.QUEUED, SlotState.FAILED, SlotState.CANCELLED}),
    SlotState.SUCCEEDED: frozenset(),
    SlotState.FAILED: frozenset(),
    SlotState.CANCELLED: frozenset(),
}
_NEXT_OF_GENERATION: Mapping[GenerationState, frozenset[GenerationState]] = {
    # Straight to ENDED: the client leaves before the first call.
    GenerationState.ADMITTED: frozenset({GenerationState.RUNNING, GenerationState.ENDED}),
    GenerationState.RUNNING: frozenset({GenerationState.ENDED}),
    GenerationState.ENDED: frozenset(),
}
