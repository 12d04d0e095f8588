"""How a UNet runs: as it is, compiled, or replayed from a recording of its kernels."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import UNet2DConditionModel

from serve_app.config import Compile

_MOST_RECORDINGS = 64


class Program(Protocol):
    """A UNet call: sample (rows, channels, h, w), timestep (rows,), context, pooled and time_ids (rows first) to the prediction."""

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor: ...

    def warm_up(self, *inputs: torch.Tensor) -> None:
        """Get ready for inputs of this shape, however long it takes; a call alone never does what would hold up other slots."""


def make_program(unet: UNet2DConditionModel, mode: Compile) -> Program:
    """Return the UNet as `engine.compile` asks for."""
    program: Program = AsItIs(unet)
    match mode:
        case "regional":
            program = _CompiledBlocks(unet)
        case "full":
            program = _Compiled(program)
    return _Recorded(program) if unet.device.type == "cuda" else program


def keep_compiled_kernels(folder: str) -> None:
    """Make the compiler of this process keep its results in `folder` and look there first."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder


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
        unet.compile_repeated_blocks(fullgraph=True, dynamic=True)

    def warm_up(self, *inputs: torch.Tensor) -> None:
        self(*inputs)
        self(*(part[:1] for part in inputs))


class _Compiled:
    """For each latent size one compilation for any number of rows from 2 up, and one for a single row, which the compiler takes for a constant.

    What was not warmed up runs as it is.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._compiled = torch.compile(program, fullgraph=True, options={"conv_1x1_as_mm": True})
        self._ready: set[tuple[bool, int, int]] = set()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._run(*inputs) if self._kind(inputs) in self._ready else self._program(*inputs)

    def warm_up(self, *inputs: torch.Tensor) -> None:
        self._run(*inputs)
        self._ready.add(self._kind(inputs))

    def _run(self, *inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs[0]) > 1:
            for part in inputs:
                torch._dynamo.mark_dynamic(part, 0)
        prediction: torch.Tensor = self._compiled(*inputs)
        return prediction

    @staticmethod
    def _kind(inputs: Sequence[torch.Tensor]) -> tuple[bool, int, int]:
        rows, _, height, width = inputs[0].shape
        return rows == 1, height, width


@dataclass(frozen=True, slots=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[torch.Tensor]
    prediction: torch.Tensor


class _Recorded:
    """A program on the GPU, recorded as a CUDA graph for each shape at its second call: one launch instead of two thousand.

    A prediction is valid until the next call.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._recordings: OrderedDict[torch.Size, _Recording | None] = OrderedDict()
        # Recordings are replayed one after another, so they may share their memory.
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        shape = inputs[0].shape
        if shape not in self._recordings:
            # The first call loads kernels, which cannot be recorded.
            self._remember(shape, None)
            return self._program(*inputs)
        recording = self._recordings[shape] or self._record(inputs)
        self._remember(shape, recording)
        for kept, given in zip(recording.inputs, inputs, strict=True):
            kept.copy_(given)
        recording.graph.replay()
        return recording.prediction

    def warm_up(self, *inputs: torch.Tensor) -> None:
        self._program.warm_up(*inputs)
        self._program(*inputs)
        self._remember(inputs[0].shape, self._record(inputs))

    def _record(self, inputs: Sequence[torch.Tensor]) -> _Recording:
        kept = [part.clone() for part in inputs]
        graph = torch.cuda.CUDAGraph()
        # Other threads allocate memory meanwhile, for previews and files.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            prediction = self._program(*kept)
        return _Recording(graph, kept, prediction)

    def _remember(self, shape: torch.Size, recording: _Recording | None) -> None:
        self._recordings[shape] = recording
        self._recordings.move_to_end(shape)
        if len(self._recordings) > _MOST_RECORDINGS:
            self._recordings.popitem(last=False)
