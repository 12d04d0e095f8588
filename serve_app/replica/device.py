"""The device: CUDA or CPU, as configured. It is never guessed."""

from collections.abc import Callable

import torch


class DeviceError(Exception):
    """The configured device is not available."""


def prepare_device(num_gpus: float, num_cpus: float) -> torch.device:
    """Return the replica's device, and set torch's threads to the replica's number of cores.

    Raises DeviceError if a GPU is configured and torch sees none, or others' too.
    """
    torch.set_num_threads(max(1, int(num_cpus)))
    if num_gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError("num_gpus is above 0, but torch sees no CUDA device here; set num_gpus: 0 to run on the CPU")
    if (seen := torch._C._cuda_getDeviceCount()) > (given := torch.cuda.device_count()):
        raise DeviceError(f"this process was given {given} of {seen} GPUs, but it had asked CUDA before, and sees all")
    return torch.device("cuda", 0)


def fast_layout(device: torch.device) -> torch.memory_format:
    """Return the memory layout in which convolutions are fastest on `device`."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def to_device(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to `device` without waiting for the device's queued work."""
    return value if device.type == "cpu" else value.pin_memory().to(device, non_blocking=True)


def to_host(value: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the CPU without waiting; see `mark`. One that is there is not copied."""
    if value.device.type == "cpu":
        return value
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)


def mark(device: torch.device) -> Callable[[], None]:
    """Return a function that waits for everything queued on the device's stream so far."""
    if device.type == "cpu":
        return lambda: None
    event = torch.cuda.Event(blocking=True)
    event.record()
    return event.synchronize
