"""Generates images from the shipped folder with the service's engine, for the figures and the model card."""

import base64
import io
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from serve_app.config import AdaptersConfig, EngineConfig, ModelConfig, PreviewConfig
from serve_app.messages import Generated, Slot, SlotEvent
from serve_app.recipe import Lora, Output, Recipe
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.engine import Engine
from serve_app.replica.lora.sets import NO_ADAPTERS
from serve_app.replica.lora.store import LoraStore, make_store
from serve_app.replica.observer import Silent
from serve_app.replica.quantize import to_fp8

GUIDANCE = 3.0


class Precision(StrEnum):
    """What the models compute in. FP8 is the service's `engine.quantization: fp8`, with bfloat16 elsewhere."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FP8 = "fp8"


def _recipe(prompt: str, size: int, steps: int) -> Recipe:
    return Recipe(
        prompt=prompt,
        width=size,
        height=size,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        scheduler="euler",
    )


@dataclass(frozen=True, slots=True)
class Service:
    """A running engine on a loaded folder."""

    checkpoint: Checkpoint
    engine: Engine
    store: LoraStore | None

    def generate(
        self, asked: Sequence[tuple[str, int]], steps: int, size: int, loras: Sequence[Lora] = ()
    ) -> torch.Tensor:
        """Generate (prompt, seed) pairs; return (pictures, 3, size, size), -1 to 1, in their order."""
        adapters = self.store.read(loras) if self.store else NO_ADAPTERS
        events: queue.Queue[tuple[int, SlotEvent | Exception]] = queue.Queue()
        for number, (prompt, seed) in enumerate(asked):
            slot = Slot(number, seed, _recipe(prompt, size, steps), Output())
            self.engine.submit(slot, lambda event, number=number: events.put((number, event)), adapters)  # type: ignore[misc]  # a lambda's default
        images = torch.zeros(len(asked), 3, size, size)
        with tqdm(total=len(asked), desc="generate", mininterval=5) as bar:
            while bar.n < len(asked):
                number, event = events.get()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Generated):
                    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(event.b64_json))).convert("RGB"))
                    images[number] = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 127.5 - 1
                    bar.update()
        return images


def load_in(precision: Precision, model: ModelConfig, device: torch.device, *, keep: bool = False) -> Checkpoint:
    """Return a loaded model. `keep` keeps the weights that FP8 replaces, for adapters."""
    dtype = Precision.BFLOAT16 if precision is Precision.FP8 else precision
    checkpoint = load_checkpoint(model.model_copy(update={"dtype": dtype.value}), device)
    if precision is Precision.FP8:
        # Layers of all widths: the embedded model's are too narrow to gain time, but here only exactness counts.
        # On the CPU the kernels' references run, on a GPU what the service itself would use there.
        kernels = True if device.type == "cpu" else None
        to_fp8(checkpoint, model, fewest_features=1, keep=keep, kernels=kernels)
    return checkpoint


@contextmanager
def open_service(
    folder: Path,
    batch: int,
    device: torch.device,
    loras: Path | None = None,
    precision: Precision = Precision.FLOAT32,
    images_per_call: int = 1,
) -> Iterator[Service]:
    """Run an engine on a diffusers folder; it generates `batch` images at once and stops at the end of the context.

    `loras` is the absolute path of a folder of adapters.
    """
    checkpoint = load_in(precision, ModelConfig(path=str(folder)), device, keep=loras is not None)
    store = make_store(AdaptersConfig(path=str(loras) if loras else None), checkpoint)
    sets = 0 if store is None else 1
    config = EngineConfig(max_batch_size=batch, images_per_call=images_per_call)
    engine = Engine(checkpoint, config, PreviewConfig(), Silent(), sets)
    engine.start()
    try:
        yield Service(checkpoint, engine, store)
    finally:
        engine.stop()
