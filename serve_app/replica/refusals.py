"""Whatever a library raises at a checkpoint is a refusal of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.errors import CheckpointError, first_line


@contextmanager
def refused(fault: Callable[[str], CheckpointError], words: str) -> Iterator[None]:
    """Raise `fault(words)` where the block raises anything but a CheckpointError, which says it better.

    diffusers, transformers, tokenizers and safetensors raise what they like at files they did not expect: ImportError
    for a missing extra, NotImplementedError, TypeError, bare Exception.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise fault(f"{words} ({first_line(error)})") from error
