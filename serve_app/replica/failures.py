"""What an error on a replica means: for the slot, for its client, and for the replica itself."""

import logging
import re
from enum import Enum

import torch

from serve_app.errors import OUT_OF_MEMORY, SlotFailed
from serve_app.messages import Slot

logger = logging.getLogger("ray.serve")

_NO_MEMORY = re.compile(r"out of memory|ALLOC(ATION)?_FAILED|can't allocate memory")
_OF_THE_DEVICE = re.compile(r"CUDA (driver )?error|CUBLAS_STATUS_|cuDNN error|CUDNN_STATUS_|Triton Error \[CUDA\]")
_REFUSED = re.compile(r"_STATUS_(NOT_SUPPORTED|INVALID_VALUE|BAD_PARAM)|invalid (configuration )?argument")


class Failure(Enum):
    """What an error has cost."""

    SLOT = "the slot"
    MEMORY = "the slot, for which there was no memory"
    DEVICE = "the device: every later call on it fails too"


def failure_of(error: Exception) -> Failure:
    """Return what an error has cost.

    Most come without a type of their own: torch and Triton raise the errors of CUDA's libraries as RuntimeError. What a
    library refuses to compute does not break the device.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Failure.MEMORY
    if not isinstance(error, RuntimeError):
        return Failure.SLOT
    said = str(error)
    if _NO_MEMORY.search(said):
        return Failure.MEMORY
    of_the_device = isinstance(error, torch.AcceleratorError) or _OF_THE_DEVICE.search(said)
    return Failure.DEVICE if of_the_device and not _REFUSED.search(said) else Failure.SLOT


def no_room(error: Exception) -> str | None:
    """Return what there was and what to do where a start has found no memory; None if it has failed otherwise."""
    if failure_of(error) is not Failure.MEMORY:
        return None
    advice = "let fewer share it (num_gpus), or lower adapters.resident_sets or engine.warm_up_sizes"
    if not torch.cuda.is_available():
        return f"there is no memory for the model; {advice}"
    free, total = torch.cuda.mem_get_info()
    own = torch.cuda.memory_reserved()
    taken, others, all_ = (f"{size / 2**30:.1f}" for size in (own, total - free - own, total))
    return f"there is no memory for the model: of its GPU's {all_} GiB it has taken {taken}, others {others}; {advice}"


def slot_failure(error: Exception, slot: Slot) -> SlotFailed:
    """Return the error that a client gets for a failed slot. The details of unexpected errors go to the log."""
    if isinstance(error, SlotFailed):
        return error
    if failure_of(error) is Failure.MEMORY:
        return SlotFailed(
            OUT_OF_MEMORY, "the replica ran out of memory; ask for a smaller size or fewer images at once"
        )
    logger.error("%s failed", slot.name, exc_info=error)
    return SlotFailed("internal", "the image could not be generated; the service's log says why")
