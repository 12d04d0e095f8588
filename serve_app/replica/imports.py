"""How the libraries that a replica needs are imported. It takes seconds, which `serve_app/forks/` spends beforehand."""

import gc
import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import ModuleType
from typing import cast

COMPILER = (
    "torch._functorch._aot_autograd.aot_autograd_result",
    "torch._inductor.decomposition",
    "torch._inductor.select_algorithm",
    "torch._inductor.graph",
)
"""What torch needs to read compiled models besides; it imports that itself."""

HIDDEN_GPUS = {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Keeps imports before a fork from CUDA: diffusers asks whether there are GPUs when it is imported, and a process that
has asked CUDA gets that answer for good, before Ray says which GPU is its own. With the second, torch asks the driver's
library instead; that starts a thread, which no fork would have, unless there is nothing to ask for."""

_packages = cache(importlib.metadata.packages_distributions)
"""Which distributions the packages of this environment belong to. diffusers and transformers ask when imported, and it
reads a file of every distribution that is installed: up to 0.8 s each time."""


def hash_triton() -> None:
    """Let Triton hash its own files now, half a second, which a process does before its first kernel."""
    with suppress(ImportError):  # there is none for CPUs
        from triton.runtime.cache import triton_key

        triton_key()


@contextmanager
def importing() -> Iterator[None]:
    """Import what is imported meanwhile for good, and without peft, which diffusers imports wherever it is installed:
    replicas do not need it, and it takes longer than to load a small model.
    """
    hidden = sys.modules.setdefault("peft", cast(ModuleType, None)) is None
    asked, importlib.metadata.packages_distributions = importlib.metadata.packages_distributions, _packages
    try:
        with for_good():
            yield
    finally:
        importlib.metadata.packages_distributions = asked
        if hidden:
            del sys.modules["peft"]


@contextmanager
def for_good() -> Iterator[None]:
    """Leave alone what is made meanwhile: it stays, and to look through it for garbage takes a sixth of the time.

    Nor do later collections look at it, which would hold up every image.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
