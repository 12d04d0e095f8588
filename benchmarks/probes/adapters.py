"""What adapters cost: a switch, images/s with several in turn, memory, and a new one's first picture."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Queue
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.conditions import Conditions
from benchmarks.measures import timed
from serve_app.messages import Generated, Slot
from serve_app.recipe import Lora
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.engine import Engine
from serve_app.replica.loading import load
from serve_app.replica.lora.merging import Layers
from serve_app.replica.lora.sets import NO_ADAPTERS, Adapters
from serve_app.replica.lora.store import LoraStore, make_store
from serve_app.replica.observer import Silent

_RANK = 64
_FILES = 12
_IN_TURN = (0, 1, 2, 8)
_SWITCHES = 5


def probe(conditions: Conditions) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        args = conditions.with_overrides(f"adapters.path={folder}").args()
        checkpoint = load(args)
        sizes = [_write(Path(folder, f"{number}.safetensors"), checkpoint, number) for number in range(_FILES)]
        yield f"LoRAs of rank {_RANK}: {sizes[0] / 2**20:.0f} MiB each"
        store = make_store(args.adapters, checkpoint)
        assert store is not None
        before = _memory()
        engine = Engine(checkpoint, args.engine, args.preview, Silent(), args.adapters.resident_sets)
        try:
            slot = conditions.slot()
            yield f"warm-up: {timed(lambda: engine.start([slot]).result()):.1f} s"
            yield f"memory of {args.adapters.resident_sets} sets and all graphs: {(_memory() - before) / 2**30:.1f} GiB"
            bench = _Bench(engine, store, slot)
            yield from bench.first_pictures()
            yield from bench.rates(conditions.workload.seconds)
            yield f"a switch, by the engine's thread, {_SWITCHES} times: {bench.switches()}"
        finally:
            engine.stop()


class _Bench:
    def __init__(self, engine: Engine, store: LoraStore, slot: Slot) -> None:
        self._engine = engine
        self._store = store
        self._slot = slot
        self._seed = 0

    def first_pictures(self) -> Iterator[str]:
        """Say how much longer a picture takes with a LoRA that was never read, or is not merged."""
        plain, known = self._times(lambda _: NO_ADAPTERS), self._times(lambda _: self._read(0))
        new = self._times(lambda turn: self._read(1 + turn))
        merged_anew = self._times(lambda turn: self._read(1 + turn))
        for what, times in (
            ("none", plain),
            ("one that is merged", known),
            ("one that was read, and is merged anew", merged_anew),
            ("one that was never read", new),
        ):
            yield f"one picture alone with {what}: {median(times):.3f} s ({min(times):.3f} to {max(times):.3f})"

    def rates(self, seconds: float) -> Iterator[str]:
        """Say how many images a second there are with LoRAs in turn, each compared with none before and after."""
        for number in range(max(_IN_TURN)):
            self._read(number)
        base = self._rate(0, seconds)
        for in_turn in _IN_TURN[1:]:
            rate, again = self._rate(in_turn, seconds), self._rate(0, seconds)
            share = rate / ((base + again) / 2)
            yield f"{in_turn} LoRAs in turn: {rate:.3f} images/s, {share:.3f} of none ({base:.3f}, {again:.3f})"
            base = again

    def switches(self) -> str:
        sets = self._engine._models._sets
        times = []

        def switch(adapters: Adapters) -> None:
            sets.of(adapters, ())
            _synchronize()

        with torch.inference_mode():
            for turn in range(_SWITCHES):
                adapters = self._read(turn)
                _synchronize()
                times.append(timed(partial(switch, adapters)))
        return ", ".join(f"{1000 * seconds:.1f} ms" for seconds in times)

    def _read(self, number: int) -> Adapters:
        return self._store.read([Lora(name=str(number), scale=0.8)])

    def _times(self, adapters: Any) -> Sequence[float]:
        def image(turn: int) -> float:
            def generate() -> None:
                events: Queue[Any] = Queue()
                self._engine.submit(self._fresh(), events.put, adapters(turn))
                _wait(events)

            return timed(generate)

        image(0)
        return [image(turn) for turn in range(3)]

    def _rate(self, in_turn: int, seconds: float) -> float:
        """Return the images per second while two batches are always asked for."""
        events: Queue[Any] = Queue()
        at_once = 2 * self._engine._config.max_batch_size
        began, finished, submitted = 0.0, 0, 0
        while finished <= at_once or time.perf_counter() - began < seconds:
            while submitted - finished < at_once:
                adapters = self._read(submitted % in_turn) if in_turn else NO_ADAPTERS
                self._engine.submit(self._fresh(), events.put, adapters)
                submitted += 1
            _wait(events)
            finished += 1
            if finished == at_once:
                began = time.perf_counter()
        rate = (finished - at_once) / (time.perf_counter() - began)
        for _ in range(submitted - finished):
            _wait(events)
        return rate

    def _fresh(self) -> Slot:
        self._seed += 1
        return replace(self._slot, seed=self._seed)


def _wait(events: "Queue[Any]") -> None:
    while not isinstance(event := events.get(timeout=120), Generated):
        if isinstance(event, Exception):
            raise event


def _write(file: Path, checkpoint: Checkpoint, seed: int) -> int:
    """Write a LoRA of all linear layers of the UNet's transformer blocks, small random weights; return its size."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer, shape in _linears(checkpoint).items():
        outputs, inputs = shape
        rank = min(_RANK, outputs, inputs)
        tensors[f"unet.{layer}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator).half() * inputs**-0.5
        tensors[f"unet.{layer}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator).half() * 0.01
    save_file(tensors, file)
    return file.stat().st_size


def _linears(checkpoint: Checkpoint) -> Mapping[str, torch.Size]:
    return {
        layer: shape
        for layer, shape in Layers(checkpoint.pipe.unet).shapes.items()
        if "transformer_blocks" in layer and len(shape) == 2
    }


def _memory() -> int:
    return torch.cuda.memory_reserved() if torch.cuda.is_available() else 0


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
