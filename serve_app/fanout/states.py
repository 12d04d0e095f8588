"""The states of a slot and of its generation, and which may follow which.

The values are the words of the API: an image's `status` is the last state of its slot.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Self


class IllegalTransition(Exception):
    """A state cannot follow another: a fault of ours."""


class State(Enum):
    """A state that knows which ones may follow it."""

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return not _NEXT[self]

    def to(self, state: Self) -> Self:
        """Return the state that follows. Raises IllegalTransition."""
        if state not in _NEXT[self]:
            raise IllegalTransition(f"{type(self).__name__}: what is {self.value} cannot become {state.value}")
        return state


class SlotState(State):
    """Where a slot is, as its client is told. It ends once, in one of the last three."""

    QUEUED = "queued"
    """No replica has reported a step yet, or none of the one it was sent to last."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class GenerationState(State):
    """Where a request is as a whole. How it ended is the sum of its slots."""

    ADMITTED = "admitted"
    """Its slots are in the queue; no call has been made."""
    RUNNING = "running"
    ENDED = "ended"
    """Every slot has ended."""


_NEXT: Mapping[State, frozenset[State]] = {
    # Straight to SUCCEEDED: a call for the picture alone reports no steps.
    SlotState.QUEUED: frozenset({SlotState.RUNNING, SlotState.SUCCEEDED, SlotState.FAILED, SlotState.CANCELLED}),
    # Back to QUEUED: its replica is lost or returns it, and another generates it from the start.
    SlotState.RUNNING: frozenset({SlotState.QUEUED, SlotState.SUCCEEDED, SlotState.FAILED, SlotState.CANCELLED}),
    SlotState.SUCCEEDED: frozenset(),
    SlotState.FAILED: frozenset(),
    SlotState.CANCELLED: frozenset(),
    # Straight to ENDED: the client leaves before the first call.
    GenerationState.ADMITTED: frozenset({GenerationState.RUNNING, GenerationState.ENDED}),
    GenerationState.RUNNING: frozenset({GenerationState.ENDED}),
    GenerationState.ENDED: frozenset(),
}
