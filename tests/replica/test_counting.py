"""What a replica counts."""

from concurrent.futures import Future
from dataclasses import replace

import pytest

from serve_app import metrics
from serve_app.config import AppArgs, EngineConfig, ModelConfig
from serve_app.replica.batching import Load
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.counting import Counting
from serve_app.schemas import ModelInfo
from tests.fakes import MODEL, Metrics

ARGS = AppArgs(model=ModelConfig(width=256, height=128), engine=EngineConfig(compile="full", warm_up_sizes=["192x192"]))


@pytest.mark.parametrize(("size", "label"), [((128, 256), "256x128"), ((192, 192), "192x192"), ((64, 64), "other")])
def test_only_sizes_that_are_warmed_up_have_a_series_of_their_own(size: tuple[int, int], label: str) -> None:
    counted = Metrics()
    Counting(ARGS, counted).step(0.1, 1, size)
    assert counted.observed_labels == [(metrics.STEP_SECONDS, {"size": label})]


@pytest.mark.parametrize(
    ("compiled", "size", "chunks", "misses"),
    [("full", (64, 64), 1, 1), ("full", (128, 256), 1, 0), ("full", (128, 256), 2, 1), ("none", (64, 64), 2, 0)],
)
def test_images_of_a_size_or_length_of_prompt_that_is_not_compiled_are_counted(
    compiled: str, size: tuple[int, int], chunks: int, misses: int
) -> None:
    counted = Metrics()
    args = ARGS.model_copy(update={"engine": ARGS.engine.model_copy(update={"compile": compiled})})
    Counting(args, counted).begun(size, chunks)
    assert counted.count(metrics.UNCOMPILED) == misses


def test_the_gauges_say_how_many_of_how_many_places_are_taken(checkpoint: Checkpoint) -> None:
    counted, named = Metrics(), Future[ModelInfo]()
    named.set_result(MODEL)
    Counting(ARGS, counted).look(Load(active=4, waiting=1, finished=0), replace(checkpoint, named=named))
    assert (counted.gauges[metrics.ACTIVE], counted.gauges[metrics.CAPACITY]) == (4, 4)
    assert counted.gauges[metrics.INFO] == 1
    assert metrics.GPU_MEMORY not in counted.gauges, "there is none"
