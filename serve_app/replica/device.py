"""The device: CUDA or CPU, as configured. It is never guessed."""

from collections import deque

import torch


class DeviceError(Exception):
    """The configured device is not available."""


def prepare_device(num_gpus: float, num_cpus: float) -> torch.device:
    """Return the replica's device. On the CPU, also set torch's threads to the replica's number of cores.

    Raises DeviceError if a GPU is configured and torch sees none.
    """
    if num_gpus == 0:
        torch.set_num_threads(max(1, int(num_cpus)))
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError("num_gpus is above 0, but torch sees no CUDA device here; set num_gpus: 0 to run on the CPU")
    return torch.device("cuda", 0)


def fast_layout(device: torch.device) -> torch.memory_format:
    """Return the memory layout in which convolutions are fastest on `device`."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def to_device(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to `device` without waiting for the device's queued work."""
    return value if device.type == "cpu" else value.pin_memory().to(device, non_blocking=True)


class RunAhead:
    """Keeps the CPU one step ahead of the GPU, so that the GPU never waits for it.

    Not further ahead, so that slots can still join and leave between steps. Does nothing on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._launched: deque[torch.cuda.Event] = deque()

    def step_launched(self) -> None:
        """Wait until the GPU has computed the step before the one just launched."""
        if not self._on_gpu:
            return
        event = torch.cuda.Event(blocking=True)
        event.record()
        self._launched.append(event)
        if len(self._launched) > 1:
            self._launched.popleft().synchronize()
