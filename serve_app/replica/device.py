"""CUDA or CPU, by configuration and never by guess."""

from collections import deque

import torch


class DeviceError(Exception):
    """The configured device is not there."""


def prepare_device(num_gpus: float, num_cpus: float) -> torch.device:
    """Return the replica's device; on the CPU, also give torch as many threads as the replica has cores.

    Raises DeviceError where a GPU is asked for and torch sees none.
    """
    if num_gpus == 0:
        torch.set_num_threads(max(1, int(num_cpus)))
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError("num_gpus is above 0, but torch sees no CUDA device here; set num_gpus: 0 to run on the CPU")
    return torch.device("cuda", 0)


def fast_layout(device: torch.device) -> torch.memory_format:
    """Return the memory layout of images and convolutions that `device` is fastest with."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def to_device(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor on `device`, without waiting for what the device is still doing."""
    return value if device.type == "cpu" else value.pin_memory().to(device, non_blocking=True)


class RunAhead:
    """Keeps the processor one step ahead of the GPU, which then never waits for it.

    It is no further ahead, so that slots can join and leave. On the CPU there is nothing to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._launched: deque[torch.cuda.Event] = deque()

    def step_launched(self) -> None:
        """Wait until the step before the one just launched has been computed."""
        if not self._on_gpu:
            return
        event = torch.cuda.Event(blocking=True)
        event.record()
        self._launched.append(event)
        if len(self._launched) > 1:
            self._launched.popleft().synchronize()
