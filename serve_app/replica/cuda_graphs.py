"""CUDA graphs: a forward's kernels, captured once per shape and replayed with one launch."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch

from serve_app.replica.compilation import Forward

_MOST_GRAPHS = 32

_Shapes = tuple[torch.Size, ...]
"""The shapes of all inputs."""

Output = TypeVar("Output")


def with_cuda_graphs(forward: Forward[Output], device: torch.device) -> Forward[Output]:
    """Return a forward that captures and replays CUDA graphs; on the CPU, return the forward unchanged."""
    return _Graphed(forward) if device.type == "cuda" else forward


def _shapes(inputs: Sequence[torch.Tensor]) -> _Shapes:
    return tuple(part.shape for part in inputs)


@dataclass(frozen=True, slots=True)
class _CudaGraph(Generic[Output]):
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[torch.Tensor]
    output: Output


class _Graphed(Generic[Output]):
    """Captures a forward as a CUDA graph at its second call with inputs of the same shapes.

    A replay is one launch instead of two thousand. An output is valid until the next call.
    """

    def __init__(self, forward: Forward[Output]) -> None:
        self._forward = forward
        self._seen: set[_Shapes] = set()
        self._graphs: OrderedDict[_Shapes, _CudaGraph[Output]] = OrderedDict()
        self._inputs: WeakValueDictionary[tuple[int, torch.Size], torch.Tensor] = WeakValueDictionary()
        self._stream = torch.cuda.Stream()

    def __call__(self, *inputs: torch.Tensor) -> Output:
        shapes = _shapes(inputs)
        if shapes not in self._seen:
            # The first call loads kernels, and loading cannot be captured.
            self._seen.add(shapes)
            return self._forward(*inputs)
        if shapes not in self._graphs:
            self._capture(inputs)
        self._graphs.move_to_end(shapes)
        captured = self._graphs[shapes]
        for kept, given in zip(captured.inputs, inputs, strict=True):
            kept.copy_(given)
        captured.graph.replay()
        return captured.output

    def warm_up(self, *inputs: torch.Tensor) -> None:
        self._forward.warm_up(*inputs)
        for _ in range(2):
            self(*inputs)

    def _capture(self, inputs: Sequence[torch.Tensor]) -> None:
        """Capture a call.

        `torch.cuda.graph` would also synchronize the device and release its cached memory, which holds up other slots.
        """
        # Graphs are replayed one after another, so they can share memory, and inputs of equal shape.
        kept = [self._inputs.setdefault((place, part.shape), part.clone()) for place, part in enumerate(inputs)]
        pool = (
            next((captured.graph.pool() for captured in self._graphs.values()), None) or torch.cuda.graph_pool_handle()
        )
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # Other threads allocate memory in the meantime, for previews and files.
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                output = self._forward(*kept)
            finally:
                graph.capture_end()
        self._graphs[_shapes(inputs)] = _CudaGraph(graph, kept, output)
        if len(self._graphs) > _MOST_GRAPHS:
            self._graphs.popitem(last=False)
