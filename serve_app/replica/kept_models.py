"""Reads compiled models from the files in which they are kept.

Reading SDXL's takes four seconds of Python, and loading weights is mostly copying. So a start notes which it needed,
and the next one with the same settings reads those while weights are loaded.
"""

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from serve_app.replica.imports import for_good
from serve_app.replica.kept_files import keep

logger = logging.getLogger("ray.serve")


class KeptModels:
    """Reads compiled models, one at a time; ahead those that the last start needed."""

    def __init__(self, noted: Callable[[], Path] | None = None) -> None:
        """Begin to read what the last start noted in a file, whose name may take a while. None: read nothing ahead."""
        self._asked: dict[str, None] = {}  # names, in this order
        self._noted: Future[Path] | None = None
        self._ahead: Future[dict[Path, Any]] | None = None
        if noted:
            thread = ThreadPoolExecutor(1, thread_name_prefix="compiled models")
            self._noted = thread.submit(noted)
            self._ahead = thread.submit(_read_all, self._noted)
            thread.shutdown(wait=False)

    def read(self, path: Path) -> Any:
        """Return the compiled model in a file, or None."""
        self._asked[path.name] = None
        with for_good():
            ahead = self._ahead.result() if self._ahead else {}
            return ahead.pop(path) if path in ahead else _read(path)

    def note(self) -> None:
        """Note what was asked for, for the next start. What was read ahead and not asked for is let go."""
        self._ahead = None
        if self._noted:
            names = json.dumps(list(self._asked))
            keep(self._noted.result(), lambda name: Path(name).write_text(names))


def _read_all(noted: Future[Path]) -> dict[Path, Any]:
    """Return the compiled models that a file names. Whatever is wrong with one will show when it is asked for."""
    file = noted.result()
    try:
        paths = [file.parent / name for name in json.loads(file.read_text())]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError):
        logger.warning("%s cannot be read: compiled models are read later", file, exc_info=True)
        return {}
    return {path: compiled for path in paths if (compiled := _read(path))}


def _read(path: Path) -> Any:
    """Return the compiled model in a file, or None."""
    if not path.exists():
        return None
    from torch._inductor import config  # with the compiler, which not all starts need

    started = time.perf_counter()
    try:
        # With more threads torch starts a process for each core, to compile what is compiled already.
        with config.patch(compile_threads=1), path.open("rb") as file:
            compiled = torch.compiler.load_compiled_function(file)
    except Exception:
        logger.warning("the compiled model in %s cannot be loaded here and is compiled again", path, exc_info=True)
        return None
    logger.info("compiled model %s read in %.1f s", path.stem, time.perf_counter() - started)
    return compiled
