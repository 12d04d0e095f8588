"""CUDA or CPU, by configuration and never by guess."""

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
