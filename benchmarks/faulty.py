"""The service with replicas that fail on request: `benchmarks.faulty:build` instead of `serve_app.app:build`.

A file named after a replica's process, in the folder that `FAULTS` names, holds the fault of its next UNet call.
"""

import os
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from ray.serve import Application

from serve_app import app
from serve_app.config import AppArgs
from serve_app.replica import deployment

FAULTS = "PARALLEL_SDXL_FAULTS"


class Fault(Enum):
    HANG = "hang"
    OUT_OF_MEMORY = "out of memory"


def inject(folder: Path, pid: int, fault: Fault) -> None:
    """Make the next UNet call of a replica's process fail."""
    unfinished = folder / f"{pid}.new"
    unfinished.write_text(fault.value)
    unfinished.rename(folder / str(pid))


class Replica(deployment.Replica):
    """A replica whose UNet calls look for a fault first."""

    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        await super().__init__(args)
        models: Any = self._engine._models
        models.predict = _faulty(models.predict, Path(os.environ[FAULTS], str(os.getpid())))


def build(args: AppArgs) -> Application:
    """Return the application with such replicas."""
    with patch.object(app, "Replica", Replica):
        return app.build(args)


def _faulty(predict: Callable[..., Any], file: Path) -> Callable[..., Any]:
    def call(*inputs: Any) -> Any:
        if file.exists():
            fault = Fault(file.read_text())
            file.unlink()
            if fault is Fault.OUT_OF_MEMORY:
                raise torch.OutOfMemoryError("this call was told to run out of memory")
            while True:
                time.sleep(1)
        return predict(*inputs)

    return call
