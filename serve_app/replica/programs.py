"""How a model runs: as it is, compiled, or replayed from a recording of its kernels."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import torch
from diffusers import UNet2DConditionModel

from serve_app.config import Compile
from serve_app.replica.attention import blocks

_MOST_COMPILATIONS = 64
_MOST_RECORDINGS = 32

Output_co = TypeVar("Output_co", covariant=True)
Output = TypeVar("Output")


class Program(Protocol[Output_co]):
    """A function of tensors on the device.

    The UNet's takes sample (rows, channels, h, w), timestep (rows,), context, pooled and time_ids (rows first) and
    returns the prediction; `prompts.TextEncoders` is the other.
    """

    def __call__(self, *inputs: torch.Tensor) -> Output_co: ...

    def warm_up(self, *inputs: torch.Tensor) -> None:
        """Get ready for inputs of this shape, however long it takes; a call alone never does what would hold up other slots."""


def make_program(unet: UNet2DConditionModel, mode: Compile) -> Program[torch.Tensor]:
    """Return the UNet as `engine.compile` asks for."""
    program: Program[torch.Tensor] = AsItIs(unet)
    match mode:
        case "regional":
            program = _CompiledBlocks(unet)
        case "full":
            program = _Compiled(program)
    return recorded(program, unet.device)


def recorded(program: Program[Output], device: torch.device) -> Program[Output]:
    """Return the program as a GPU replays it; on the CPU it stays what it is."""
    return _Recorded(program) if device.type == "cuda" else program


@contextmanager
def compiling_nothing() -> Iterator[None]:
    """What has been compiled runs compiled, all else as it is: a compilation would hold up every slot."""
    with torch.compiler.set_stance("eager_on_recompile"):
        yield


@contextmanager
def compiling() -> Iterator[None]:
    """Compile the same code for as many sizes as are warmed up. The compiler's settings hold for the thread that makes them."""
    with torch._dynamo.config.patch(recompile_limit=_MOST_COMPILATIONS):
        yield


def use_compile_cache(folder: str) -> None:
    """Make the compiler of this process keep its results in `folder`, where `~` is the home folder, and look there first."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder).expanduser())


class AsItIs:
    """The UNet's own code."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._unet = unet

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        sample, timestep, context, pooled, time_ids = inputs
        added = {"text_embeds": pooled, "time_ids": time_ids}
        prediction: torch.Tensor = self._unet(sample, timestep, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)[0]
        return prediction

    def warm_up(self, *inputs: torch.Tensor) -> None:
        pass


class _CompiledBlocks(AsItIs):
    """The blocks that SDXL has 70 of, compiled once for any size; a single row is a case of its own for the compiler."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__(unet)
        for block in blocks(unet):
            # Not the module: its hook, other for each block, stays outside.
            block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        with compiling_nothing():
            return super().__call__(*inputs)

    def warm_up(self, *inputs: torch.Tensor) -> None:
        with compiling():
            super().__call__(*inputs)
            super().__call__(*(part[:1] for part in inputs))


class _Compiled:
    """For each latent size one compilation for any number of rows from 2 up, and one for a single row, which the compiler takes for a constant."""

    def __init__(self, program: Program[torch.Tensor]) -> None:
        self._compiled = torch.compile(program, fullgraph=True, options={"conv_1x1_as_mm": True})

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        with compiling_nothing():
            prediction: torch.Tensor = self._compiled(*inputs)
        return prediction

    def warm_up(self, *inputs: torch.Tensor) -> None:
        if len(inputs[0]) > 1:
            for part in inputs:
                torch._dynamo.mark_dynamic(part, 0)
        for side in (2, 3):
            torch._dynamo.mark_static(inputs[0], side)
        with compiling():
            self._compiled(*inputs)


@dataclass(frozen=True, slots=True)
class _Recording(Generic[Output]):
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[torch.Tensor]
    output: Output


class _Recorded(Generic[Output]):
    """A program on the GPU, recorded as a CUDA graph for each shape at its second call: one launch instead of two thousand.

    An output is valid until the next call.
    """

    def __init__(self, program: Program[Output]) -> None:
        self._program = program
        self._seen: set[torch.Size] = set()
        self._recordings: OrderedDict[torch.Size, _Recording[Output]] = OrderedDict()
        self._inputs: WeakValueDictionary[tuple[int, torch.Size], torch.Tensor] = WeakValueDictionary()
        self._stream = torch.cuda.Stream()

    def __call__(self, *inputs: torch.Tensor) -> Output:
        shape = inputs[0].shape
        if shape not in self._seen:
            # The first call loads kernels, which cannot be recorded.
            self._seen.add(shape)
            return self._program(*inputs)
        if shape not in self._recordings:
            self._record(inputs)
        self._recordings.move_to_end(shape)
        recording = self._recordings[shape]
        for kept, given in zip(recording.inputs, inputs, strict=True):
            kept.copy_(given)
        recording.graph.replay()
        return recording.output

    def warm_up(self, *inputs: torch.Tensor) -> None:
        self._program.warm_up(*inputs)
        for _ in range(2):
            self(*inputs)

    def _record(self, inputs: Sequence[torch.Tensor]) -> None:
        """Record a call. `torch.cuda.graph` would also wait for the device and give its free memory back, which holds up other slots."""
        # Recordings are replayed one after another, so they share their inputs of one shape, and their memory.
        kept = [self._inputs.setdefault((place, part.shape), part.clone()) for place, part in enumerate(inputs)]
        pool = next((recording.graph.pool() for recording in self._recordings.values()), None) or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            # Other threads allocate memory meanwhile, for previews and files.
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                output = self._program(*kept)
            finally:
                graph.capture_end()
        self._recordings[inputs[0].shape] = _Recording(graph, kept, output)
        if len(self._recordings) > _MOST_RECORDINGS:
            self._recordings.popitem(last=False)
