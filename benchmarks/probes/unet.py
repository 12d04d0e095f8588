"""Shared by the probes: inputs for a UNet, calls of it, and their time."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from serve_app.replica.attention import prompt_context
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.device import fast_layout
from serve_app.replica.unet import UNetInputs, eager

Call = Callable[..., torch.Tensor]
"""A UNet call as in `compilation.Forward`."""

_ROUNDS = 20


def unet_call(checkpoint: Checkpoint) -> Call:
    """Return a call that runs the UNet eagerly."""
    return eager(checkpoint.unet)


def compiled_call(checkpoint: Checkpoint, any_size: bool = False) -> Call:
    """Return the UNet compiled as in the engine, for any number of rows, and with `any_size` for any size."""
    compiled = torch.compile(unet_call(checkpoint), fullgraph=True, options={"conv_1x1_as_mm": True})

    def call(*given: torch.Tensor) -> torch.Tensor:
        for part in given:
            torch._dynamo.mark_dynamic(part, 0)
        for side in (2, 3):
            (torch._dynamo.mark_dynamic if any_size else torch._dynamo.mark_static)(given[0], side)
        prediction: torch.Tensor = compiled(*given)
        return prediction

    return call


def inputs(checkpoint: Checkpoint, rows: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Return random inputs for rows of one size in pixels. All rows differ."""
    generator = torch.Generator("cpu").manual_seed(seed)
    config, scale = checkpoint.unet.config, checkpoint.pipe.vae_scale_factor
    ids = 6 * config.addition_time_embed_dim

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(checkpoint.device, checkpoint.dtype)

    tokens = noise(rows, checkpoint.pipe.tokenizer.model_max_length, config.cross_attention_dim)
    sample = noise(rows, config.in_channels, height // scale, width // scale)
    size = torch.tensor([[height, width, 0, 0, height, width]], device=checkpoint.device, dtype=checkpoint.dtype)
    return UNetInputs(
        sample=sample.to(memory_format=fast_layout(checkpoint.device)),
        timestep=torch.linspace(900, 100, rows, device=checkpoint.device),
        context=prompt_context(checkpoint.unet, tokens),
        pooled=noise(rows, config.projection_class_embeddings_input_dim - ids),
        time_ids=size.repeat(rows, 1),
    ).tensors


def milliseconds(call: Call, given: Sequence[torch.Tensor]) -> float:
    """Return the median time of a call after warm-up.

    On a GPU it is the time of replaying the call as a CUDA graph, as in the engine.
    """
    call(*given), call(*given)
    if given[0].device.type == "cpu":
        return median(_cpu_milliseconds(lambda: call(*given)) for _ in range(3))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(*given)
    graph.replay()
    return median(_gpu_milliseconds(graph.replay) for _ in range(_ROUNDS))


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0))


def _cpu_milliseconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - started)


def _gpu_milliseconds(act: Callable[[], object]) -> float:
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    act()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))
