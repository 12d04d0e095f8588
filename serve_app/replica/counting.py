"""The metrics of a replica, from what its engine does."""

import torch

from serve_app import __version__, metrics
from serve_app.config import AppArgs
from serve_app.line import OTHER
from serve_app.messages import Loss, Stage
from serve_app.replica.batching import Load
from serve_app.replica.checkpoint import Checkpoint


class Counting:
    """An engine's observer that counts."""

    def __init__(self, args: AppArgs, counted: metrics.Metrics | None = None) -> None:
        self._counted = counted or metrics.Metrics(metrics.REPLICA)
        self._warm = {(height, width): f"{width}x{height}" for width, height in args.warm_up_sizes}
        self._warm_chunks = args.engine.warm_up_prompt_chunks
        self._all_compiled = args.engine.compile == "full"
        self._capacity = args.engine.max_batch_size

    def stage(self, stage: Stage, seconds: float) -> None:
        self._counted.add(metrics.STAGE_SECONDS, seconds, stage=stage)

    def step(self, seconds: float, images: int, size: tuple[int, int]) -> None:
        self._counted.observe(metrics.STEP_SECONDS, seconds, size=self._warm.get(size, OTHER))

    def begun(self, size: tuple[int, int], prompt_chunks: int) -> None:
        if self._all_compiled and (size not in self._warm or prompt_chunks > self._warm_chunks):
            self._counted.add(metrics.UNCOMPILED)

    def ended(self, outcome: str) -> None:
        self._counted.add(metrics.SLOTS, outcome=outcome)

    def wasted(self, loss: Loss, seconds: float) -> None:
        self._counted.add(metrics.WASTED_SECONDS, seconds, reason=loss)

    def look(self, load: Load, checkpoint: Checkpoint) -> None:
        """Set the gauges."""
        self._counted.set(metrics.ACTIVE, load.active)
        self._counted.set(metrics.CAPACITY, self._capacity)
        model, device = checkpoint.info, checkpoint.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._counted.set(metrics.INFO, 1, version=__version__, model=model.name, hash=model.hash, device=name)
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            self._counted.set(metrics.GPU_MEMORY, total - free, kind="used")
            self._counted.set(metrics.GPU_MEMORY, total, kind="total")
