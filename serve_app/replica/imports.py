"""How the libraries that a replica needs are imported. It takes seconds, which `serve_app/forks/` spends beforehand."""

import gc
import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import cast

COMPILER = (
    "torch._functorch._aot_autograd.aot_autograd_result",
    "torch._inductor.decomposition",
    "torch._inductor.select_algorithm",
    "torch._inductor.graph",
)
"""What torch needs to read compiled models besides; it imports that itself."""

_KERNELS = tuple(f"serve_app.replica.kernels.{name}" for name in ("conv", "cross", "geglu"))

_packages = cache(importlib.metadata.packages_distributions)
"""Which distributions the packages of this environment belong to. diffusers and transformers ask when imported, and it
reads a file of every distribution that is installed: up to 0.8 s each time."""


def prepare_kernels() -> None:
    """Let the compiler and Triton hash their own files, and import our kernels: a second before the first kernel.

    Raises what comes of another Triton, or of none.
    """
    if compiler := sys.modules.get("torch._inductor.codecache"):
        compiler.torch_key()
    from triton.runtime.cache import triton_key

    triton_key()
    for kernels in _KERNELS:
        import_module(kernels)


@contextmanager
def told_of_gpus(there_are: bool) -> Iterator[None]:
    """Tell those who ask torch meanwhile whether there are GPUs, as diffusers and the compiler do when imported.

    Torch would ask CUDA, and a process that has done so before Ray says which GPU is its own sees all of them for good;
    or the driver's library, which starts a thread, and forks have only the thread that forks.
    """
    import torch

    asked, torch.cuda.is_available = torch.cuda.is_available, lambda: there_are
    try:
        yield
    finally:
        torch.cuda.is_available = asked


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
