"""How far pictures with 8-bit floats are from bfloat16, with the embedded model's weights. Runs on the CPU too.

Writes a page of them, `out/fp8.webp`: each prompt in float32, bfloat16 and fp8 with our kernels (on the CPU, their
references).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image

from benchmarks.conditions import Conditions
from benchmarks.probes.fp8 import checkpoint_widths, to_rowwise
from benchmarks.probes.unet import cosine
from serve_app.config import ModelConfig
from serve_app.recipe import Recipe
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint, quiet_progress_bars
from serve_app.replica.decode import Decoder
from serve_app.replica.denoise import Denoiser
from serve_app.replica.lora.sets import WeightSet
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.quantize import to_fp8
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import eager
from training.grid import PROMPTS

_SEED = 7
_PAGE = Path("out/fp8.webp")
_ACROSS = 4
"""Prompts in a row of the page."""

_VARIANTS: tuple[tuple[str, Callable[[Checkpoint, int], int]], ...] = (
    ("one scale", lambda checkpoint, width: to_fp8(checkpoint, ModelConfig(), width, kernels=False)),
    ("a scale a row", to_rowwise),
    ("one scale, convolutions too", lambda checkpoint, width: to_fp8(checkpoint, ModelConfig(), width, kernels=True)),
)

Generated = list[tuple[torch.Tensor, np.ndarray]]
"""Final latents and pixels of each prompt."""


def probe(conditions: Conditions) -> Iterator[str]:
    quiet_progress_bars()
    device = torch.device(conditions.device)
    exact = generate(load("float32", device))
    half = generate(load("bfloat16", device))
    yield f"bfloat16 / float32: {_distance(half, exact)}"
    width = checkpoint_widths(load("bfloat16", device))[0]
    for name, quantize in _VARIANTS:
        checkpoint = load("bfloat16", device)
        replaced = quantize(checkpoint, width)
        fp8 = generate(checkpoint)
        yield f"fp8, {name}, {replaced} layers / bfloat16: {_distance(fp8, half)}"
        yield f"fp8, {name}, {replaced} layers / float32: {_distance(fp8, exact)}"
    _PAGE.parent.mkdir(exist_ok=True)
    _page([exact, half, fp8]).save(_PAGE, quality=80, method=6)
    yield f"the pictures are in {_PAGE}"


def _page(columns: Sequence[Generated]) -> Image.Image:
    """Return each prompt's pictures side by side, a few prompts a row, at half the size."""
    cells = [
        np.concatenate(row, axis=1) for row in zip(*([pixels for _, pixels in one] for one in columns), strict=True)
    ]
    gap = np.full((cells[0].shape[0], 16, 3), 255, np.uint8)
    across = [
        np.concatenate([part for cell in cells[i : i + _ACROSS] for part in (cell, gap)], axis=1)
        for i in range(0, len(cells), _ACROSS)
    ]
    page = Image.fromarray(np.concatenate(across))
    return page.resize((page.width // 2, page.height // 2), Image.Resampling.LANCZOS)


def load(dtype: str, device: torch.device) -> Checkpoint:
    return load_checkpoint(ModelConfig.model_validate({"dtype": dtype}), device)


@torch.inference_mode()
def generate(checkpoint: Checkpoint, prompts: Sequence[str] = PROMPTS, weights: WeightSet | None = None) -> Generated:
    """Generate pictures, of a model's own weights or of a set with adapters."""
    model, unet = ModelConfig(), weights.unet if weights else checkpoint.unet
    reader, encoder = (
        PromptReader(checkpoint.pipe),
        PromptEncoder(checkpoint.pipe, checkpoint.device, len(prompts) + 1),
    )
    denoiser, decoder = Denoiser(checkpoint, eager(unet)), Decoder(checkpoint, "none")
    generated = []
    for prompt in prompts:
        recipe = Recipe(
            prompt=prompt,
            width=model.width,
            height=model.height,
            num_inference_steps=model.num_inference_steps,
            guidance_scale=model.guidance_scale,
        )
        trajectory = Trajectory.of(recipe, _SEED, checkpoint, encoder.conditions(reader.read(recipe), weights))
        while not trajectory.done:
            trajectory.advance(denoiser.predict([trajectory])[0])
        generated.append((trajectory.latents.cpu(), decoder.decode(trajectory.latents).wait()))
    return generated


def _distance(ours: Generated, theirs: Generated) -> str:
    cosines = [cosine(a, b) for (a, _), (b, _) in zip(ours, theirs, strict=True)]
    ratios = [psnr(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True)]
    return (
        f"latent cosine {mean(cosines):.5f} (least {min(cosines):.5f}), "
        f"image PSNR {mean(ratios):.1f} dB (least {min(ratios):.1f})"
    )


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
