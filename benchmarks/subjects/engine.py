"""The engine, in-process: its measures, and their goals."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from benchmarks.conditions import Conditions
from benchmarks.measures import LOAD_S, Goal, Measure, Samples, Subject, Trial, rounds
from serve_app.messages import Slot

# Imported where the subject is opened: torch takes seconds to import, and whoever only calls a service needs none.
if TYPE_CHECKING:
    from benchmarks.engine import EngineBench

BATCHES = (1, 2, 4, 8)
_FIRST_S = 60.0
"""Time of a trial that may have to compile, with kernels in the cache."""


def _open_engine(conditions: Conditions) -> AbstractContextManager[EngineBench]:
    from benchmarks.engine import open_engine

    return open_engine(conditions)


def _latency(prefix: str, goal: Goal | None, few: bool = False) -> Trial:
    """Generate one image after another."""

    def run(bench: EngineBench, conditions: Conditions) -> Samples:
        work = conditions.workload
        slot = _few(conditions) if few else conditions.slot()
        bench.prepare(1, slot)
        return {f"{prefix}.image": [bench.image(slot) for _ in rounds(work.seconds)]}

    return Trial((Measure(f"{prefix}.image", "s", "one image: prompt, UNet, VAE, JPEG", goal),), run, seconds=_FIRST_S)


def _batch(prefix: str, images: int, few: bool = False, small: bool = False) -> Trial:
    """Keep the engine full."""
    name = f"{prefix}.batch{images}"

    def run(bench: EngineBench, conditions: Conditions) -> Samples:
        work = conditions.workload
        size = work.small_size if small else work.size
        slot = _few(conditions) if few else conditions.slot(width=size, height=size)
        bench.prepare(images, slot)
        return {name: bench.rates(slot, work.seconds)}

    return Trial((Measure(name, "images/s", f"{images} images a UNet call, more waiting"),), run, seconds=60)


def _turns(prefix: str, few: bool = False, small: bool = False, goal: Goal | None = None) -> Trial:
    """Generate with a replica's default settings, with which no image's bits depend on others."""
    name = f"{prefix}.turns4"

    def run(bench: EngineBench, conditions: Conditions) -> Samples:
        work = conditions.workload
        size = work.small_size if small else work.size
        slot = _few(conditions) if few else conditions.slot(width=size, height=size)
        bench.prepare(4, slot, images_per_call=1)
        return {name: bench.rates(slot, work.seconds)}

    return Trial(
        (Measure(name, "images/s", "4 images in turns, one a UNet call, more waiting", goal),), run, seconds=40
    )


def _png(bench: EngineBench, conditions: Conditions) -> Samples:
    slot = conditions.slot(output_format="png")
    bench.prepare(1, slot)
    return {"engine.png": [bench.image(slot) for _ in rounds(conditions.workload.seconds / 2)]}


def _edit(bench: EngineBench, conditions: Conditions) -> Samples:
    """Go on from pictures, beside images from noise alone."""
    slot, steps = conditions.slot(), conditions.workload.steps
    strength = round(0.6 * steps) / steps
    bench.prepare(1, slot)
    taken: dict[str, list[float]] = {measure.name: [] for measure in _EDITS}
    for _ in rounds(2 * conditions.workload.seconds):
        image, (edit, encode) = bench.image(slot), bench.edit(slot, strength)
        taken["engine.edit"].append(edit)
        taken["engine.edit.encode"].append(1000 * encode)
        taken["engine.edit.beyond"].append(1000 * (edit - strength * image - encode))
    return taken


_EDITS = (
    Measure("engine.edit", "s", "one image-to-image of strength 0.6"),
    Measure("engine.edit.encode", "ms", "of that: the picture to latents"),
    Measure("engine.edit.beyond", "ms", "of that: all except encoding and 0.6 of an image", Goal(20, 10)),
)


def _idle(bench: EngineBench, conditions: Conditions) -> Samples:
    slot = conditions.slot()
    bench.prepare(1, slot)
    return {"engine.idle": [bench.idle(slot, 0)]}


def _few(conditions: Conditions) -> Slot:
    return conditions.slot(num_inference_steps=conditions.workload.few_steps, guidance_scale=0.0)


ENGINE = Subject(
    "engine",
    _open_engine,
    devices=1,
    seconds=LOAD_S,
    trials=(
        _latency("engine", Goal(0.60, 0.58)),
        Trial((Measure("engine.png", "s", "the same with a PNG"),), _png, seconds=15),
        Trial(_EDITS, _edit, seconds=40),
        Trial(
            (Measure("engine.idle", "%", "GPU idle between launches under load, by profiler", Goal(3, 1)),),
            _idle,
            seconds=40,
        ),
        _turns("engine", goal=Goal(1.75, 1.85)),
        *(_batch("engine", images) for images in BATCHES),
    ),
)
ENGINE_512 = Subject(
    "engine512",
    _open_engine,
    devices=1,
    seconds=LOAD_S,
    trials=(
        _turns("engine512", small=True, goal=Goal(6.0, 7.0)),
        *(_batch("engine512", images, small=True) for images in BATCHES),
    ),
    overrides=("model.width=512", "model.height=512"),
)
ENGINE_FP8 = Subject(
    "fp8",
    _open_engine,
    devices=1,
    seconds=LOAD_S,
    trials=(
        _latency("fp8", Goal(0.46, 0.42)),
        _turns("fp8", goal=Goal(2.30, 2.50)),
        *(_batch("fp8", images) for images in (4, 8)),
    ),
    overrides=("engine.quantization=fp8",),
)
ENGINE_FEW = Subject(
    "few",
    _open_engine,
    devices=1,
    seconds=LOAD_S,
    trials=(
        _latency("few", Goal(0.18, 0.15), few=True),
        _turns("few", few=True, goal=Goal(12, 14)),
        *(_batch("few", images, few=True) for images in (1, 4)),
    ),
)
