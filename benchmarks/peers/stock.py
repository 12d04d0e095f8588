"""Peer: diffusers' pipeline, called in-process: as it is, and tuned as its guide to speed says."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO

import torch

from benchmarks.conditions import Conditions
from benchmarks.measures import timed
from benchmarks.peers.pipeline import load_pipeline


class Stock:
    def __init__(self, conditions: Conditions, half: torch.dtype) -> None:
        self._work = conditions.workload
        self._pipe = load_pipeline(conditions.checkpoint, conditions.device, half)

    def images(self, number: int, size: int, steps: int, guidance: float) -> float:
        """Return the seconds of one call for `number` images, including their JPEG files of quality 95."""
        return timed(partial(self._call, number, size, steps, guidance))

    def compile(self) -> None:
        """Compile UNet and decoder."""
        pipe = self._pipe
        pipe.fuse_qkv_projections()
        for model in (pipe.unet, pipe.vae):
            model.to(memory_format=torch.channels_last)
        pipe.unet = torch.compile(pipe.unet, mode="max-autotune", fullgraph=True)
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode="max-autotune", fullgraph=True)

    def _call(self, number: int, size: int, steps: int, guidance: float) -> None:
        pictures = self._pipe(
            self._work.prompt,
            num_images_per_prompt=number,
            width=size,
            height=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
        ).images
        for picture in pictures:
            picture.save(BytesIO(), "JPEG", quality=95)


@contextmanager
def _open(conditions: Conditions, half: torch.dtype) -> Iterator[Stock]:
    stock = Stock(conditions, half)
    stock.images(1, conditions.workload.size, 2, conditions.workload.guidance)
    yield stock


@contextmanager
def open_tuned(conditions: Conditions) -> Iterator[Stock]:
    """Follow https://huggingface.co/docs/diffusers/optimization/fp16, with bfloat16: each setting that it names.

    Compiling takes minutes, since `max-autotune` times every product's kernels.
    """
    from torch._inductor import config

    with config.patch(
        conv_1x1_as_mm=True,
        coordinate_descent_tuning=True,
        coordinate_descent_check_all_directions=True,
        epilogue_fusion=False,
    ):
        stock = Stock(conditions, torch.bfloat16)
        stock.compile()
        work = conditions.workload
        for _ in range(3):  # compiles, then captures CUDA graphs
            stock.images(1, work.size, work.steps, work.guidance)
        yield stock


open_float16 = partial(_open, half=torch.float16)
open_bfloat16 = partial(_open, half=torch.bfloat16)
