"""LoRAs for few steps with the schedulers they need, as diffusers' pipeline samples with them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, StableDiffusionXLPipeline, TCDScheduler

from serve_app.recipe import SchedulerName, SigmaSchedule
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.lora import read_lora
from serve_app.replica.lora.merging import Layers
from serve_app.replica.lora.sets import Adapters
from tests.conftest import MakeEngine, make_slot, pipeline
from tests.random_lora import save_lora
from tests.replica.test_equals_diffusers import Latents, assert_same, latents

__all__ = ["latents"]

TRAILING: dict[str, Any] = {"timestep_spacing": "trailing"}
LORA: list[tuple[SchedulerName, SigmaSchedule | None, float, Callable[..., Any]]] = [
    ("lcm", None, 1.5, LCMScheduler.from_config),
    ("tcd", None, 0.0, TCDScheduler.from_config),
    ("euler", "sgm_uniform", 0.0, partial(EulerDiscreteScheduler.from_config, **TRAILING)),
    ("ddim", "sgm_uniform", 0.0, partial(DDIMScheduler.from_config, **TRAILING, clip_sample=False)),
]


@pytest.fixture(scope="module")
def file(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lora(tiny_path, tmp_path_factory.mktemp("few") / "few.safetensors", seed=3)


@pytest.fixture(scope="module")
def theirs(tiny_path: Path, file: Path) -> StableDiffusionXLPipeline:
    pipe = pipeline(tiny_path)
    pipe.load_lora_weights(file)
    return pipe


@pytest.mark.parametrize(("scheduler", "schedule", "guidance", "stock"), LORA)
def test_four_steps_are_diffusers(
    scheduler: SchedulerName,
    schedule: SigmaSchedule | None,
    guidance: float,
    stock: Callable[..., Any],
    file: Path,
    theirs: StableDiffusionXLPipeline,
    checkpoint: Checkpoint,
    make_engine: MakeEngine,
    latents: Latents,
) -> None:
    slot = make_slot(scheduler=scheduler, sigma_schedule=schedule, guidance_scale=guidance)
    deltas = read_lora(file, {"unet": Layers(checkpoint.unet).shapes}, "few").components
    running = make_engine(weight_sets=1)
    for adapters in (Adapters((("few", 1.0),), (deltas,)), Adapters()):
        running.submit(slot, adapters).result()
    theirs.scheduler = stock(theirs.scheduler.config)
    expected = theirs(
        slot.recipe.prompt,
        width=64,
        height=64,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(slot.seed),
        output_type="latent",
    ).images
    assert_same(latents.seen[0], expected)
    assert not torch.allclose(latents.seen[1], expected, rtol=1e-2), "the LoRA changes the picture"
