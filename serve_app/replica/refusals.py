"""Turns what libraries raise on a checkpoint into a CheckpointError."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.errors import CheckpointError, first_line


@contextmanager
def refused(fault: Callable[[str], CheckpointError], words: str) -> Iterator[None]:
    """Raise `fault(words)` if the block raises anything but a CheckpointError, which is already more specific.

    diffusers, transformers, tokenizers and safetensors raise many types on unexpected files: ImportError for a missing
    extra, NotImplementedError, TypeError, bare Exception.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise fault(f"{words} ({first_line(error)})") from error
