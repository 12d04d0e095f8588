"""Kernels of our own, for what torch has none as fast on Hopper GPUs.

`fp8.py` (8-bit floats) and `half.py` (16-bit floats) have them as torch operators, each with a plain reference beside
it; `geglu.py`, `conv.py` and `cross.py` are what runs on the GPU.
"""

import os
import shutil
from collections.abc import Mapping

import torch
from torch import nn

_HOPPER = (9, 0)
_C_COMPILERS = ("cc", "gcc", "clang")
_CHANNELS = 64
"""What numbers of channels must be a multiple of."""


def have_kernels(device: torch.device) -> bool:
    """Return whether our kernels run on a device."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != _HOPPER:
        return False
    if not (os.environ.get("CC") or any(map(shutil.which, _C_COMPILERS))):
        return False  # Triton needs one to launch what it compiles
    try:
        from serve_app.replica.kernels import tiles  # noqa: F401
    except (ImportError, AttributeError):  # another Triton
        return False
    return True


def convolutions(model: nn.Module) -> Mapping[str, nn.Conv2d]:
    """Return a model's 3x3 convolutions that our kernels can compute, by name.

    They are all of SDXL's but the first and the last, and those that halve the size.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and (module.kernel_size, module.stride, module.padding) == ((3, 3), (1, 1), (1, 1))
        and module.in_channels % _CHANNELS == 0
        and module.out_channels % _CHANNELS == 0
        and module.bias is not None
    }
