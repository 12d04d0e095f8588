"""How often a slot is generated again, and when it fails instead."""

from dataclasses import dataclass
from typing import Literal

from serve_app.errors import ADAPTER_GONE, OUT_OF_MEMORY, ReplicaLost, SlotFailed, SlotReturned
from serve_app.fanout.events import BREAKS_REPLICAS, NOWHERE

Again = Literal["lost", "returned", "out_of_memory", "adapter_gone"]
"""Why a slot is generated again."""

_MOST_LOST = 2
"""Replicas that may die while they have a slot, or have no memory for it, before it fails."""

_MOST_BROKEN = 3
"""Replicas that may break down while they generate a slot, before it fails: it may be why."""

_MOST_WITHOUT = 8
"""Replicas that may be without a slot's adapters, whose files are gone, before it fails: of those thought to have read
them, as far as there are any, after the first."""

_MOST_RETURNED = 20
"""Times that a slot may be returned for whatever reason before it fails."""


@dataclass(slots=True)
class Tries:
    """Counts how the tries to generate one slot have ended."""

    _lost: int = 0
    _broken: int = 0
    _returned: int = 0
    _without: int = 0

    def again_after(self, error: SlotReturned | ReplicaLost | SlotFailed) -> Again:
        """Return why the slot is generated again after an error.

        Raises the error, or SlotFailed, when too many replicas have died, broken down or had no memory for it.
        """
        if isinstance(error, SlotReturned):
            # Seldom the slot's doing; but one that breaks every replica must not have them all.
            self._broken, self._returned = self._broken + error.begun, self._returned + 1
            if self._broken == _MOST_BROKEN or self._returned == _MOST_RETURNED:
                end = BREAKS_REPLICAS if self._broken == _MOST_BROKEN else NOWHERE
                raise SlotFailed(end.type, end.message) from error
            return "returned"
        if isinstance(error, SlotFailed) and error.type == ADAPTER_GONE:
            self._without += 1
            if self._without == _MOST_WITHOUT:
                raise error
            return "adapter_gone"
        self._lost += 1
        if self._lost == _MOST_LOST or (isinstance(error, SlotFailed) and error.type != OUT_OF_MEMORY):
            raise error
        return "out_of_memory" if isinstance(error, SlotFailed) else "lost"
