"""The libraries that a replica needs. To import them takes seconds, which `serve_app/preload.py` spends beforehand."""

import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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

_one_at_a_time = threading.Lock()


def import_all(modules: Iterable[str] = MODULES, while_: Callable[[], bool] = lambda: True) -> None:
    """Import what a replica needs, after what another thread is importing; stop early if told so."""
    for module in modules:
        with _one_at_a_time:
            if not while_():
                return
            with importing():
                import_module(module)


@contextmanager
def importing() -> Iterator[None]:
    """Import what is imported meanwhile for good, and without peft, which diffusers imports wherever it is installed:
    replicas do not need it, and it takes longer than to load a small model.
    """
    hidden = sys.modules.setdefault("peft", cast(ModuleType, None)) is None
    try:
        with for_good():
            yield
    finally:
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
