"""How the images of a request pause, and which go on: those that somebody names, or the best by a rule."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from serve_app.errors import NotFound, NotPaused
from serve_app.fanout.slot_record import SlotRecord
from serve_app.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Pauses:
    """How the images of a request pause.

    With `best` so many go on by themselves once all have a sketch, the others end; None: each waits `ttl_s` seconds for
    somebody. `canvas_bytes` is the size of the canvas that they share.
    """

    ttl_s: float = math.inf
    best: int | None = None
    canvas_bytes: int = 0

    @property
    def waits_s(self) -> float | None:
        """How long one waits for somebody; None: it waits for the other sketches."""
        return self.ttl_s if self.best is None else None

    def kept_bytes(self, records: Sequence[SlotRecord]) -> int:
        """Return how many bytes paused images keep, and those may keep that are still to be paused."""
        kept = sum(record.kept_bytes for record in records)
        return kept + self.canvas_bytes if kept else 0

    def passed_over(self, records: Sequence[SlotRecord]) -> Sequence[SlotRecord]:
        """Return the paused ones that will not be among the best, whatever is still to come.

        Of equals the first by index is better; one without a score is worse than all others.
        """
        if self.best is None:
            return ()
        paused = [record for record in records if record.is_paused]
        return sorted(paused, key=lambda one: (one.score is None, -(one.score or 0), one.slot.index))[self.best :]

    def chosen(self, records: Sequence[SlotRecord]) -> Sequence[SlotRecord]:
        """Return the paused ones that go on by themselves, once nobody else may come before them."""
        more = any(record.slot.pause_after is not None and not record.state.ended for record in records)
        return () if self.best is None or more else [record for record in records if record.is_paused]


NO_PAUSES = Pauses()


@dataclass(frozen=True, slots=True)
class Branch:
    """What paused images go on as, if not as what they were begun, and what there is to warn of."""

    recipe: Recipe
    warnings: Sequence[str]


def without_score(record: SlotRecord) -> Sequence[str]:
    """Return a sentence if a sketch was to be scored and could not be: it is chosen last, whatever it shows."""
    by = record.slot.score_by
    return [f'keep.by: "{by}" has no score for some sketches, which come last'] if by and record.score is None else []


def named(records: Sequence[SlotRecord], images: Collection[int] | None) -> list[SlotRecord]:
    """Return the paused ones among those of these indexes, with None among all. Raises NotFound, NotPaused."""
    states = {record.slot.index: record.state.value for record in records}
    if unknown := sorted(set(images or ()) - states.keys()):
        raise NotFound(f"the generation has no image {unknown[0]}")
    asked = [record for record in records if images is None or record.slot.index in images]
    paused = [record for record in asked if record.is_paused]
    if not paused:
        told = ", ".join(f"image {record.slot.index} is {states[record.slot.index]}" for record in asked)
        raise NotPaused(f"there is nothing to resume: {told or 'no image is named'}")
    return paused
