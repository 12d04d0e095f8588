"""Reads compiled models from the files in which they are kept.

Reading SDXL's takes three seconds of Python, and loading weights is mostly copying. So a start notes which it needed,
and the next one of the same model reads those while weights are loaded.
"""

import json
import logging
import marshal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType
from typing import Any

import torch

from serve_app.replica.imports import for_good
from serve_app.replica.kept_files import keep

logger = logging.getLogger("ray.serve")


_Reading = Future[Any]
"""A compiled model, or None, being read."""


class KeptModels:
    """Reads compiled models, one at a time; ahead those that the last start needed."""

    def __init__(self, noted: Callable[[], Path] | None = None) -> None:
        """Begin to read what the last start noted in a file, whose name may take a while. None: read nothing ahead."""
        self._asked: dict[str, None] = {}  # names, in this order
        self._noted: Future[Path] | None = None
        self._ahead: Future[dict[Path, _Reading]] | None = None
        if noted:
            thread = ThreadPoolExecutor(1, thread_name_prefix="compiled models")
            self._noted = thread.submit(noted)
            self._ahead = thread.submit(_read_ahead, self._noted, thread)

    def read(self, path: Path) -> Any:
        """Return the compiled model in a file, or None. Nothing else is read by the time it returns None."""
        self._asked[path.name] = None
        ahead = self._ahead.result() if self._ahead else {}
        if path in ahead and (compiled := ahead.pop(path).result()):
            return compiled
        wait(ahead.values())  # what reading changes of torch is the process's
        return _read(path)

    def note(self) -> None:
        """Note what was asked for, for the next start. What was read ahead and not asked for is let go."""
        for reading in self._ahead.result().values() if self._ahead else ():
            reading.cancel()
        self._ahead = None
        if self._noted:
            names = json.dumps(list(self._asked))
            keep(self._noted.result(), lambda name: Path(name).write_text(names))


def _read_ahead(noted: Future[Path], thread: ThreadPoolExecutor) -> dict[Path, _Reading]:
    """Begin to read what a file names, in this thread. Whatever is wrong with one will show when it is asked for."""
    try:
        file = noted.result()
        return {path: thread.submit(_read, path) for path in _named(file)}
    finally:
        thread.shutdown(wait=False)


def _named(file: Path) -> list[Path]:
    """Return the files that a note names."""
    try:
        return [file.parent / name for name in json.loads(file.read_text())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError):
        logger.warning("%s cannot be read: compiled models are read later", file, exc_info=True)
        return []


def _read(path: Path) -> Any:
    """Return the compiled model in a file, or None."""
    if not path.exists():
        return None
    from torch._inductor import config  # with the compiler, which not all starts need

    started = time.perf_counter()
    try:
        # With more threads torch starts a process for each core, to compile what is compiled already.
        with config.patch(compile_threads=1), _kept_bytecode(), for_good(), path.open("rb") as file:
            compiled = torch.compiler.load_compiled_function(file)
    except Exception:
        logger.warning("the compiled model in %s cannot be loaded here and is compiled again", path, exc_info=True)
        return None
    logger.info("compiled model %s read in %.1f s", path.stem, time.perf_counter() - started)
    return compiled


@contextmanager
def _kept_bytecode() -> Iterator[None]:
    """Keep the bytecode of modules that torch has written: it takes a second to make. Names say what is in them."""
    from torch._inductor.runtime import compile_tasks

    def code_of(text: str, path: str, mode: str, **options: Any) -> Any:
        kept = Path(path).with_suffix(f".{sys.implementation.cache_tag}")
        # What is damaged may raise any error.
        with suppress(Exception):
            if isinstance(code := marshal.loads(kept.read_bytes()), CodeType):  # noqa: S302 - this user's own folder
                return code
        code = compile(text, path, mode, **options)
        keep(kept, lambda name: Path(name).write_bytes(marshal.dumps(code)))
        return code

    compile_tasks.compile = code_of  # type: ignore[attr-defined]  # hides Python's own from its functions
    try:
        yield
    finally:
        vars(compile_tasks).pop("compile", None)
