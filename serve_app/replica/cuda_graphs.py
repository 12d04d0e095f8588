"""CUDA graphs: a forward's kernels, captured once per shape and replayed with one launch."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch

from serve_app.replica.compilation import Forward
from serve_app.replica.failures import Failure, failure_of

logger = logging.getLogger("ray.serve")

_MOST_GRAPHS = 32

_Shapes = tuple[torch.Size, ...]
"""The shapes of all inputs."""

Output = TypeVar("Output")


def with_cuda_graphs(forward: Forward[Output], device: torch.device) -> Forward[Output]:
    """Return a forward that captures and replays CUDA graphs; on the CPU, return the forward unchanged."""
    return all_with_cuda_graphs([forward], device)[0]


def all_with_cuda_graphs(forwards: Sequence[Forward[Output]], device: torch.device) -> Sequence[Forward[Output]]:
    """Return forwards whose CUDA graphs share their memory: an output is valid until the next call of any of them.

    Those of one `Lane` do. What runs side by side shares none, nor the libraries' workspaces of a stream.
    """
    if device.type != "cuda":
        return forwards
    capture, family = Capturer[Output](), list[Graphed[Output]]()
    family += [Graphed(forward, capture, family) for forward in forwards]
    return family


def _shapes(inputs: Sequence[torch.Tensor]) -> _Shapes:
    return tuple(part.shape for part in inputs)


@dataclass(frozen=True, slots=True)
class CudaGraph(Generic[Output]):
    """A captured call: the tensors it reads, and the output that each replay writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Sequence[torch.Tensor]
    output: Output

    def replay(self, inputs: Sequence[torch.Tensor]) -> Output:
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.output


Capture = Callable[[Forward[Output], Sequence[torch.Tensor], CudaGraph[Output] | None], CudaGraph[Output]]
"""Captures a forward's call with such inputs. The last argument is another graph, to share memory with, or None."""


class Graphed(Generic[Output]):
    """Captures a forward as a CUDA graph at its second call with inputs of the same shapes.

    A replay is one launch instead of two thousand. An output is valid until the next call. Shapes for whose graph there
    is no memory run without one.
    """

    def __init__(
        self, forward: Forward[Output], capture: Capture[Output], family: "Sequence[Graphed[Output]]" = ()
    ) -> None:
        """Take the forwards to share memory with, which may include this one."""
        self._forward = forward
        self._capture = capture
        self._family = family or (self,)
        self._seen: set[_Shapes] = set()
        self._graphs: OrderedDict[_Shapes, CudaGraph[Output] | None] = OrderedDict()  # None: there was no memory

    def __call__(self, *inputs: torch.Tensor) -> Output:
        shapes = _shapes(inputs)
        if shapes not in self._seen:
            # The first call loads kernels, and loading cannot be captured.
            self._seen.add(shapes)
            return self._forward(*inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._captured(inputs)
            if len(self._graphs) > _MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(shapes)
        captured = self._graphs[shapes]
        return captured.replay(inputs) if captured else self._forward(*inputs)

    def warm_up(self, *inputs: torch.Tensor) -> None:
        self._forward.warm_up(*inputs)
        for _ in range(2):
            self(*inputs)

    def _captured(self, inputs: Sequence[torch.Tensor]) -> CudaGraph[Output] | None:
        others = (captured for graphed in self._family for captured in graphed._graphs.values() if captured)
        try:
            return self._capture(self._forward, inputs, next(others, None))
        except Exception as error:
            if failure_of(error) is not Failure.MEMORY:
                raise
            logger.warning(
                "no memory for a CUDA graph of %s: such calls run without", list(map(tuple, _shapes(inputs)))
            )
            return None


class Capturer(Generic[Output]):
    """Captures calls; see `Capture`.

    `torch.cuda.graph` would also synchronize the device and release its cached memory, which holds up other slots.
    """

    def __init__(self) -> None:
        self._inputs: WeakValueDictionary[tuple[int, torch.Size], torch.Tensor] = WeakValueDictionary()
        self._stream = torch.cuda.Stream()

    def __call__(
        self, forward: Forward[Output], inputs: Sequence[torch.Tensor], other: CudaGraph[Output] | None
    ) -> CudaGraph[Output]:
        # Graphs are replayed one after another, so they can share memory, and inputs of equal shape.
        kept = [self._inputs.setdefault((place, part.shape), part.clone()) for place, part in enumerate(inputs)]
        pool = other.graph.pool() if other else torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # Other threads allocate memory in the meantime, for previews and files.
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                output = forward(*kept)
            finally:
                graph.capture_end()  # raises a device error if torch's allocator cannot go on
        return CudaGraph(graph, kept, output)
