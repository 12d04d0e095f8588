"""A tiny real SDXL for all tests: diffusers' own classes, random weights.

torch and what needs it are imported where they are used: where several processes run the suite, the one that gives the
others their shares reads this file too.
"""

import gc
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from serve_app.config import EngineConfig, ModelConfig, PreviewConfig
from serve_app.messages import Generated, Slot, SlotEvent
from serve_app.replica.observer import Silent

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, StableDiffusionXLPipeline

    from serve_app.replica.checkpoint import Checkpoint
    from serve_app.replica.engine import Engine
    from serve_app.replica.lora.sets import Adapters

# Tests and the processes they start only talk to this machine: ignore the environment's proxies.
for name in list(os.environ):
    if name.lower().endswith("_proxy") or name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        del os.environ[name]

# Else any call to Ray starts one, whose ten processes stay. A test that needs a Ray starts it.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"

SDXL_BLOCKS = {
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
"""How SDXL's UNet is arranged, the tiny one is not."""

ONE_LEVEL = {
    "down_block_types": ("CrossAttnDownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("UpBlock2D",),
    "block_out_channels": (32,),
    "transformer_layers_per_block": 1,
    "attention_head_dim": 2,
}
"""A UNet of one level and nothing in its middle."""

BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}

WithScheduler = Callable[["SchedulerMixin"], Path]


TOGETHER = {
    **{
        f"tests/integration/test_{name}.py": "own deployments"
        for name in (
            "changes",
            "ending",
            "ingresses",
            "models",
            "progress",
            "replica_faults",
            "resume",
            "router",
            "sketches",
            "soak",
            "versions",
        )
    },
    "tests/integration/": "shared service",
    "tests/benchmarks/test_plan.py": "compiler and peers",
    "tests/replica/test_compiler_choices.py": "compiler and peers",
    "tests/replica/test_compilation.py": "compiler and peers",
    "tests/replica/test_kept_models.py": "compiler and peers",
}
"""Tests that one process runs, by where they are: they share what takes long to make, or must not come last."""


def share_of(nodeid: str) -> str:
    """Return the name of the tests that one process runs with this one; by itself, that of the test."""
    return next((name for path, name in TOGETHER.items() if nodeid.startswith(path)), nodeid)


class Shares(LoadScopeScheduling):
    """Gives processes their shares of the tests, those of most tests first.

    Marks for xdist's own `loadgroup` have no effect with pytest 9.2 (pytest-xdist issue 1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        return share_of(nodeid)


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_auto_num_workers() -> int:
    """Return one more than there are processors: some tests wait for a service most of their time."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Shares:
    return Shares(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave alone what is imported meanwhile: it stays. Else each full collection would look at all of torch again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from serve_app.models.tiny import build

    return build(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def flat_path(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a UNet of one level, a third as costly: for tests that are not about models.

    Without an offset it has a schedule for any number of steps. Else each start with a limit of 998, as tests have it,
    would try all numbers up to there with all schedulers, for a second of the processor.
    """
    import torch
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    folder = Path(shutil.copytree(tiny_path, tmp_path_factory.mktemp("flat") / "flat"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        UNet2DConditionModel.from_config(
            {**UNet2DConditionModel.load_config(folder / "unet"), **ONE_LEVEL}
        ).save_pretrained(folder / "unet")
    EulerDiscreteScheduler.from_pretrained(folder / "scheduler", steps_offset=0).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def stock(tiny_path: Path) -> "StableDiffusionXLPipeline":
    return pipeline(tiny_path)


def pipeline(path: Path) -> "StableDiffusionXLPipeline":
    """Return diffusers' own pipeline on the same weights, to compare with."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(path, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def checkpoint(tiny_path: Path) -> "Checkpoint":
    import torch

    from serve_app.replica.checkpoint import load_checkpoint

    torch.set_num_threads(1)
    return load_checkpoint(ModelConfig(path=str(tiny_path)), torch.device("cpu"))


def make_slot(**changes: object) -> Slot:
    """Return a small, quick slot; changes are fields of a slot, its recipe or its output."""
    small = {"prompt": "a red apple", "width": 64, "height": 64, "num_inference_steps": 4, "scheduler": "euler"}
    return Slot.of({"index": 0, "seed": 7, **small, **changes})


@dataclass
class Watch(Silent):
    """An engine's observer that remembers."""

    outcomes: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def step(self, seconds: float, images: int, size: tuple[int, int]) -> None:
        self.batches.append(images)

    def ended(self, outcome: str) -> None:
        self.outcomes.append(outcome)


class Collector:
    """Takes the events of one slot and waits for the last."""

    def __init__(self) -> None:
        self.events: list[SlotEvent | Exception] = []
        self._queue: Queue[SlotEvent | Exception] = Queue()

    def post(self, event: SlotEvent | Exception) -> None:
        self._queue.put(event)

    @property
    def posted(self) -> list[SlotEvent | Exception]:
        """What has been posted so far and not been taken."""
        return list(self._queue.queue)

    def next(self) -> SlotEvent | Exception:
        event = self._queue.get(timeout=60)
        self.events.append(event)
        return event

    def result(self) -> Generated:
        """Return the picture; raise the error where there is none."""
        while True:
            event = self.next()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Generated):
                return event


@dataclass
class RunningEngine:
    engine: "Engine"
    watch: Watch

    def submit(self, slot: Slot, *adapters: "Adapters") -> Collector:
        collector = Collector()
        self.engine.submit(slot, collector.post, *adapters)
        return collector

    def submit_together(self, *slots: Slot) -> list[Collector]:
        """Submit slots so that the loop sees either none or all of them."""
        with self.engine._changed:
            return [self.submit(slot) for slot in slots]

    def generate(self, *slots: Slot) -> list[Generated]:
        return [collector.result() for collector in self.submit_together(*slots)]


MakeEngine = Callable[..., RunningEngine]


@pytest.fixture
def make_engine(checkpoint: "Checkpoint") -> Iterator[MakeEngine]:
    """Start engines that stop with the test.

    make_engine(max_batch_size=..., preview=PreviewConfig(...), checkpoint=...).
    """
    from serve_app.replica.engine import Engine

    started: list[Engine] = []

    def make(
        *,
        preview: PreviewConfig | None = None,
        checkpoint: "Checkpoint" = checkpoint,
        weight_sets: int = 0,
        **config: object,
    ) -> RunningEngine:
        watch, preview = Watch(), preview or PreviewConfig(min_interval_s=0)
        engine = Engine(checkpoint, EngineConfig(**config), preview, watch, weight_sets)
        engine.start()
        started.append(engine)
        return RunningEngine(engine, watch)

    yield make
    for engine in started:
        engine.stop()


@pytest.fixture
def with_scheduler(flat_path: Path, tmp_path: Path) -> WithScheduler:
    """Make the flat checkpoint with another scheduler."""

    def make(scheduler: "SchedulerMixin") -> Path:
        folder = Path(shutil.copytree(flat_path, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("scheduler")))
        scheduler.save_pretrained(folder / "scheduler")
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    return make
