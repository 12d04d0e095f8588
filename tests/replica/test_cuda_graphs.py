"""When a forward is captured and when it runs without a graph; `tests/gpu` captures real ones."""

import logging
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import nn

from serve_app.replica.compilation import Eager
from serve_app.replica.cuda_graphs import _MOST_GRAPHS, CudaGraph, Graphed

EAGER, REPLAYED = 1, 2


class Replayed:
    """In place of a graph."""

    def replay(self, _: Sequence[torch.Tensor]) -> int:
        return REPLAYED


class Captures:
    """Notes the widths that were captured. Widths from `limit` on fail."""

    def __init__(self, limit: int = 1000, error: Exception | None = None) -> None:
        self.widths: list[int] = []
        self.others: list[object] = []
        self._limit = limit
        self._error = error or torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self, _: object, inputs: Sequence[torch.Tensor], other: object) -> CudaGraph[Any]:
        self.widths.append(inputs[0].shape[-1])
        self.others.append(other)
        if self.widths[-1] >= self._limit:
            raise self._error
        return cast("CudaGraph[Any]", Replayed())


def graphed(captures: Captures) -> Graphed[Any]:
    return Graphed(cast("Any", Eager(lambda *_: cast("Any", EAGER), nn.Identity())), captures)


def calls(forward: Graphed[Any], width: int, times: int) -> list[int]:
    return [forward(torch.zeros(1, width)) for _ in range(times)]


def test_the_second_call_of_a_shape_is_captured_and_replayed() -> None:
    captures = Captures()
    forward = graphed(captures)
    assert calls(forward, 8, 4) == [EAGER, REPLAYED, REPLAYED, REPLAYED]
    assert calls(forward, 16, 3) == [EAGER, REPLAYED, REPLAYED]
    assert captures.widths == [8, 16]
    assert [type(other) for other in captures.others] == [type(None), Replayed], "graphs share their memory"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error: out of memory")]
)
def test_a_shape_whose_graph_found_no_memory_runs_without_one_and_this_is_said_once(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    captures = Captures(limit=64, error=error)
    forward = graphed(captures)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        assert calls(forward, 64, 5) == [EAGER] * 5
    assert captures.widths == [64]
    assert [record.getMessage() for record in caplog.records] == [
        "no memory for a CUDA graph of [(1, 64)]: such calls run without"
    ]
    assert calls(forward, 8, 2) == [EAGER, REPLAYED], "others still have theirs"
    assert captures.others == [None, None]


def test_other_errors_of_a_capture_are_raised() -> None:
    forward = graphed(Captures(limit=8, error=ZeroDivisionError()))
    calls(forward, 8, 1)
    with pytest.raises(ZeroDivisionError):
        calls(forward, 8, 1)


def test_only_the_last_used_graphs_are_kept() -> None:
    captures = Captures()
    forward = graphed(captures)
    for width in range(1, _MOST_GRAPHS + 2):
        calls(forward, width, 2)
        calls(forward, 1, 1)
    assert len(forward._graphs) == _MOST_GRAPHS
    calls(forward, 1, 1)
    assert captures.widths.count(1) == 1
    calls(forward, 2, 1)
    assert captures.widths.count(2) == 2, "it was dropped"
