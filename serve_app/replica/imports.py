"""The libraries that a replica needs. To import them takes seconds, which `serve_app/preload.py` spends beforehand."""

import gc
import importlib.metadata
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import cast

MODULES = (
    "torch",
    "serve_app.replica.loading",  # diffusers and transformers
    "serve_app.replica.engine",
    "serve_app.replica.counting",
    "serve_app.replica.demand",
    "serve_app.replica.embeddings",
    "serve_app.replica.leases",
    "serve_app.replica.lora.store",
    "serve_app.replica.pixels",
    "serve_app.replica.scorers",
)
"""In an order in which each is as little as possible. None may ask for a GPU: Ray says only later which one is ours."""

COMPILER = (
    "torch._functorch._aot_autograd.aot_autograd_result",
    "torch._inductor.decomposition",
    "torch._inductor.select_algorithm",
    "torch._inductor.graph",
)
"""What torch needs to read compiled models besides; it imports that itself."""

ASK_NO_GPU = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Makes torch ask the driver's library, by which Ray counts GPUs too, whether there are any, and not CUDA: a process
that has asked CUDA before Ray has said which GPU is its own sees all of them for good. diffusers asks when imported."""

_one_at_a_time = threading.Lock()
_packages = cache(importlib.metadata.packages_distributions)
"""Which distributions the packages of this environment belong to. diffusers and transformers ask when imported, and it
reads a file of every distribution that is installed: up to 0.8 s each time."""


def import_all(modules: Iterable[str] = MODULES, while_: Callable[[], bool] = lambda: True) -> None:
    """Import what a replica needs, after what another thread is importing; stop early if told so."""
    for module in modules:
        with _one_at_a_time:
            if not while_():
                return
            with importing():
                import_module(module)


def hash_triton() -> None:
    """Let Triton hash its own files now, half a second, which it does in each process before its first kernel."""
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
