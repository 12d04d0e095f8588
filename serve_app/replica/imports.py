"""What a replica imports, which takes longest of its start where the model is small."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast


@contextmanager
def importing() -> Iterator[None]:
    """Leave alone what is imported meanwhile: it stays, and to look through it for garbage takes a sixth of the time.

    Nor do later collections look at it, which would hold up every image. Nor is peft imported, which diffusers does
    wherever it is installed: replicas do not need it, and it takes longer than to load a small model.
    """
    gc.disable()
    hidden = sys.modules.setdefault("peft", cast(ModuleType, None)) is None
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
        if hidden:
            del sys.modules["peft"]
