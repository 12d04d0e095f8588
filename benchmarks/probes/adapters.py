"""What adapters cost: a new one's first picture and its parts, a switch, images/s with several in turn, and memory."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from queue import Queue
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.conditions import Conditions
from benchmarks.measures import rates, timed
from serve_app.adapters.kinds import require_lora
from serve_app.messages import Generated, Slot
from serve_app.recipe import Lora
from serve_app.replica.adapter_files import read_tensors
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.engine import Engine
from serve_app.replica.loading import load
from serve_app.replica.lora import LoraDeltas, read_lora
from serve_app.replica.lora.merging import Layers
from serve_app.replica.lora.sets import NO_ADAPTERS, Adapters, WeightSet
from serve_app.replica.lora.store import LoraStore, make_store
from serve_app.replica.observer import Silent
from serve_app.replica.submission import SlotJob

_RANK = 32
_FILES = 8
_IN_TURN = (1, 2, 8)
_TRIES = 3


def probe(conditions: Conditions) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        args = conditions.with_overrides(f"adapters.path={folder}").args()
        checkpoint = load(args)
        files = [Path(folder, f"{number}.safetensors") for number in range(_FILES)]
        size, tensors = _write(files, checkpoint)
        yield f"LoRAs as kohya's, rank {_RANK}, UNet and text encoders: {tensors} tensors, {size / 2**20:.0f} MiB"
        store = make_store(args.adapters, checkpoint)
        assert store is not None
        before = _memory()
        engine = Engine(checkpoint, args.engine, args.preview, Silent(), args.adapters.resident_sets)
        try:
            slot = conditions.slot()
            yield f"warm-up: {timed(lambda: engine.start([slot]).result()):.1f} s"
            yield f"memory of {args.adapters.resident_sets} sets and all graphs: {(_memory() - before) / 2**30:.1f} GiB"
            bench = _Bench(engine, store, slot, files)
            yield from bench.first_pictures()
            yield from bench.parts()
            yield from bench.rates(conditions.workload.seconds)
        finally:
            engine.stop()


class _Bench:
    def __init__(self, engine: Engine, store: LoraStore, slot: Slot, files: Sequence[Path]) -> None:
        self._engine = engine
        self._store = store
        self._slot = slot
        self._files = files
        self._unread = iter(range(1, len(files)))
        self._seed = 0

    def first_pictures(self) -> Iterator[str]:
        """Say how much longer a picture takes with a LoRA that was never read, or is not merged."""
        plain, known = self._times(lambda _: NO_ADAPTERS), self._times(lambda _: self._read(0))
        new = self._times(lambda _: self._read(next(self._unread)))
        merged_anew = self._times(lambda turn: self._read(1 + turn))
        for what, times in (
            ("none", plain),
            ("one that is merged", known),
            ("one that was read, and is merged anew", merged_anew),
            ("one that was never read", new),
        ):
            yield f"one picture alone with {what}: {_said(times)}; {median(times) - median(known):+.3f} s"

    def parts(self) -> Iterator[str]:
        """Say what takes the time of a new LoRA's first picture, each part by itself, on this thread."""
        for what, times in _by_name(self._parts_of(next(self._unread)) for _ in range(_TRIES)):
            yield f"part of it: {what}: {_said(times)}"

    def _parts_of(self, number: int) -> Iterator[tuple[str, float]]:
        file, shapes = self._files[number], self._store._shapes
        models, prompts = self._engine._models, self._engine._models.read(self._slot)
        yield "its file read and hashed, its numbers looked at", timed(lambda: read_tensors(file, require_lora, None))
        deltas: list[LoraDeltas] = []
        yield "the same, and its keys understood", timed(lambda: deltas.append(read_lora(file, shapes, "new")))
        yield "its tensors brought to the device", _until_done(lambda: self._store._packer.pack(deltas[0].tensors()))
        adapters = self._read(number)
        with torch.inference_mode():
            weights: list[WeightSet] = []
            yield "a switch: merged into a UNet", _until_done(lambda: weights.append(models._sets.of(adapters, ())))

            def change_and_restore() -> None:
                with models.prompts._changed(adapters):
                    pass

            yield "merged into the text encoders, and these restored", _until_done(change_and_restore)
            yield (
                "that, and its prompts encoded",
                _until_done(lambda: models.prompts.conditions(prompts.phases[-1], weights[0])),
            )

    def rates(self, seconds: float) -> Iterator[str]:
        """Say how many images a second there are with LoRAs in turn, each compared with none before and after."""
        for number in range(max(_IN_TURN)):
            self._read(number)
        base = self._rate(0, seconds)
        for in_turn in _IN_TURN:
            rate, again = self._rate(in_turn, seconds), self._rate(0, seconds)
            share = rate / ((base + again) / 2)
            yield f"{in_turn} LoRAs in turn: {rate:.3f} images/s, {share:.3f} of none ({base:.3f}, {again:.3f})"
            base = again

    def _read(self, number: int) -> Adapters:
        return self._store.read([Lora(name=str(number), scale=0.8)])

    def _times(self, adapters: Any) -> Sequence[float]:
        def image(turn: int) -> float:
            def generate() -> None:
                events: Queue[Any] = Queue()
                self._engine.submit(self._fresh(), events.put, adapters(turn))
                _wait(events)

            return timed(generate)

        image(_TRIES)
        return [image(turn) for turn in range(_TRIES)]

    def _rate(self, in_turn: int, seconds: float) -> float:
        """Return the images per second while two batches are always asked for, once the first is done."""
        events: Queue[Any] = Queue()
        batch = self._engine._config.max_batch_size
        jobs: list[SlotJob] = []
        finished: list[float] = []
        end = time.perf_counter() + seconds
        while len(finished) < 3 * batch or time.perf_counter() < end:
            while len(jobs) - len(finished) < 2 * batch:
                adapters = self._read(len(jobs) % in_turn) if in_turn else NO_ADAPTERS
                jobs.append(self._engine.submit(self._fresh(), events.put, adapters))
            _wait(events)
            finished.append(time.perf_counter())
        for job in jobs:
            self._engine.cancel(job)
        return median(rates(finished, warm_up=batch, window=batch))

    def _fresh(self) -> Slot:
        self._seed += 1
        return replace(self._slot, seed=self._seed)


def _wait(events: "Queue[Any]") -> None:
    while not isinstance(event := events.get(timeout=120), Generated):
        if isinstance(event, Exception):
            raise event


def _write(files: Sequence[Path], checkpoint: Checkpoint) -> tuple[int, int]:
    """Write LoRAs as kohya's trainer does, of the linear layers of all blocks; return a file's bytes and tensors.

    All take their weights from the same random numbers, each from another place.
    """
    numbers = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).half() * 0.02
    for place, file in enumerate(files):
        tensors: dict[str, torch.Tensor] = {}
        for layer, (outputs, inputs) in _layers(checkpoint):
            rank = min(_RANK, outputs, inputs)
            for part, shape in (("lora_down", (rank, inputs)), ("lora_up", (outputs, rank))):
                start = (place + len(tensors)) * 997 % (len(numbers) // 2)
                tensors[f"{layer}.{part}.weight"] = numbers[start : start + prod(shape)].view(shape).clone()
            tensors[f"{layer}.alpha"] = torch.tensor(rank / 2).half()
        save_file(tensors, file)
    return files[0].stat().st_size, len(tensors)


def _layers(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the layers that LoRAs usually change, by kohya's names, and the shapes of their weights."""
    starts = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    for component, start in starts.items():
        for layer, shape in Layers(getattr(checkpoint.pipe, component)).shapes.items():
            if len(shape) == 2 and ("attentions" if component == "unet" else "layers") in layer:
                yield f"{start}{layer.replace('.', '_')}", (shape[0], shape[1])


def _by_name(rounds: Iterable[Iterable[tuple[str, float]]]) -> Iterable[tuple[str, Sequence[float]]]:
    """Return the times of each part, over all rounds."""
    found: dict[str, list[float]] = {}
    for parts in rounds:
        for what, seconds in parts:
            found.setdefault(what, []).append(seconds)
    return found.items()


def _said(times: Sequence[float]) -> str:
    return f"{median(times):.3f} s ({min(times):.3f} to {max(times):.3f})"


def _until_done(act: Callable[[], object]) -> float:
    """Return the seconds until the device has done something."""

    def done() -> None:
        act()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return timed(done)


def _memory() -> int:
    return torch.cuda.memory_reserved() if torch.cuda.is_available() else 0
