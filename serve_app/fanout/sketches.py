"""Which paused images of a request go on."""

from collections.abc import Collection, Sequence

from serve_app.errors import NotFound, NotPaused
from serve_app.fanout.slot_record import SlotRecord


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
