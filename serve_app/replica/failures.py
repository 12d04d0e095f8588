"""The errors that clients get for failures on a replica."""

import logging

import torch

from serve_app.errors import OUT_OF_MEMORY, SlotFailed
from serve_app.messages import Slot

logger = logging.getLogger("ray.serve")


def slot_failure(error: Exception, slot: Slot) -> SlotFailed:
    """Return the error that a client gets for a failed slot. The details of unexpected errors go to the log."""
    match error:
        case SlotFailed():
            return error
        case torch.OutOfMemoryError():
            return SlotFailed(
                OUT_OF_MEMORY, "the replica ran out of memory; ask for a smaller size or fewer images at once"
            )
        case _:
            logger.error("slot with seed %d failed", slot.seed, exc_info=error)
            return SlotFailed("internal", "the image could not be generated; the service's log says why")
