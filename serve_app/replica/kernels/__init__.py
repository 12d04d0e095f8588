"""Kernels of our own, for what torch has none as fast on Hopper GPUs.

`fp8.py` (8-bit floats) and `gated.py` (16-bit floats) have them as torch operators, each with a plain reference beside
it; `geglu.py` and `conv.py` are what runs on the GPU.
"""

import os
import shutil

import torch

_HOPPER = (9, 0)
_C_COMPILERS = ("cc", "gcc", "clang")


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
