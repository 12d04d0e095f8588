"""Every scheduler with every schedule, on every kind of model: what diffusers' own gives, with a UNet of one line."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
)
from diffusers.schedulers import AysSchedules

from serve_app.canvas import Canvas, Layer
from serve_app.recipe import Recipe, SchedulerName, SigmaSchedule
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.prompts import PromptEmbedding
from serve_app.replica.schedulers import can_sample
from serve_app.replica.trajectory import Trajectory
from serve_app.samplers import SAMPLERS, refusal, unet_calls
from tests.conftest import BETAS, ZERO_SNR, make_slot
from tests.replica.test_equals_diffusers import MORE, STOCK

LEADING, TRAILING = {**BETAS, "timestep_spacing": "leading"}, {**BETAS, "timestep_spacing": "trailing"}
MODELS: Mapping[str, Mapping[str, Any]] = {
    name: {key: value for key, value in own.config.items() if key != "_use_default_values"}  # as a file says all
    for name, own in {
        "leading": EulerDiscreteScheduler(**LEADING),
        "v-trailing": EulerDiscreteScheduler(**TRAILING, prediction_type="v_prediction"),
        "zero-snr": EulerDiscreteScheduler(**TRAILING, **ZERO_SNR),
        "karras": DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True, timestep_spacing="linspace"),
    }.items()
}
SCHEDULES: Mapping[SigmaSchedule | None, Mapping[str, Any]] = {
    None: {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True, "use_karras_sigmas": False},
    "sgm_uniform": {"timestep_spacing": "trailing", "use_karras_sigmas": False},
    "align_your_steps": {"use_karras_sigmas": False},
}
"""beta is in test_quick_schedulers.py: diffusers has it beside scipy alone."""
NAMES = {**STOCK, **MORE}
SHAPE = (1, 4, 2, 2)


def a_unet(sample: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.7 * torch.tanh(sample) + 0.2 * sample.roll(1, -1) + 0.1 * torch.sin(t / 50)


@pytest.fixture(autouse=True)
def quick_constructors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare some of diffusers' constructors the schedule of all timesteps, 0.2 s that nobody uses."""

    def only_asked(own: Callable[..., None]) -> Callable[..., None]:
        def set_timesteps(
            scheduler: Any, steps: int | None = None, device: Any = None, *more: Any, **others: Any
        ) -> None:
            if device:
                own(scheduler, steps, device, *more, **others)
            else:
                scheduler.sigmas = torch.empty(0)

        return set_timesteps

    for cls in (HeunDiscreteScheduler, KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler):
        monkeypatch.setattr(cls, "set_timesteps", only_asked(cls.set_timesteps))


def theirs(name: SchedulerName, config: Any, schedule: SigmaSchedule | None, recipe: Recipe, seed: int) -> torch.Tensor:
    """Return the final latents of diffusers' own scheduler, taken through its steps as diffusers' pipelines do."""
    scheduler = NAMES[name](config, **SCHEDULES[schedule])
    steps, first = recipe.num_inference_steps, recipe.first_step
    if schedule == "align_your_steps":
        scheduler.set_timesteps(timesteps=AysSchedules["StableDiffusionXLTimesteps"], device="cpu")
    else:
        scheduler.set_timesteps(steps, device="cpu")
    timesteps = scheduler.timesteps[first * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first * scheduler.order)
    generator = torch.Generator().manual_seed(seed)
    if recipe.init_image:
        clean, noise = (torch.randn(SHAPE, generator=generator) for _ in range(2))
        latents = scheduler.add_noise(clean, noise, timesteps[:1])
    else:
        latents = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    takes = scheduler.step.__code__.co_varnames
    options = {key: value for key, value in (("generator", generator), ("eta", 0.0)) if key in takes}
    for t in timesteps:
        latents = scheduler.step(a_unet(scheduler.scale_model_input(latents, t), t), t, latents, **options).prev_sample
    assert isinstance(latents, torch.Tensor)
    return latents


def call(trajectories: list[Trajectory]) -> None:
    """Advance trajectories by one shared call of the UNet."""
    inputs = torch.cat([each.model_input() for each in trajectories])
    timesteps = torch.stack([each.timestep for each in trajectories])[:, None, None, None]
    for each, prediction in zip(trajectories, a_unet(inputs, timesteps).split(1), strict=True):
        each.advance(prediction)


def together(trajectories: list[Trajectory]) -> list[torch.Tensor]:
    """Take trajectories to their ends in shared calls of the UNet, and return their latents."""
    while waiting := [each for each in trajectories if not each.done]:
        call(waiting)
    return [each.latents for each in trajectories]


CANVAS = Canvas(Layer.of(np.zeros((16, 16, 3), np.uint8)))
EMBEDDING = PromptEmbedding(torch.zeros(1, 1, 1), torch.zeros(1, 1))
ENCODER: Any = SimpleNamespace(
    picture=lambda _: SimpleNamespace(sample=lambda generator: torch.randn(SHAPE, generator=generator))
)


def a_recipe(name: SchedulerName, schedule: SigmaSchedule | None, steps: int, strength: float | None) -> Recipe:
    picture = {"init_image": "sha256:0", "strength": strength} if strength else {}
    return make_slot(
        width=16,
        height=16,
        guidance_scale=0.0,
        scheduler=name,
        sigma_schedule=schedule,
        num_inference_steps=steps,
        **picture,
    ).recipe


@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if not name.startswith("edm")])
def test_its_calls_are_known_before_and_its_steps_are_counted(
    name: SchedulerName, steps: int, checkpoint: Checkpoint
) -> None:
    served = replace(checkpoint, scheduler_config=MODELS["leading"])
    for strength in (None, *[0.6] * SAMPLERS[name].goes_on):
        recipe = a_recipe(name, None, steps, strength)
        trajectory = Trajectory.of(recipe, 7, served, [EMBEDDING], ENCODER, CANVAS if strength else None)
        done = [trajectory.step]
        while not trajectory.done:
            trajectory.advance(a_unet(trajectory.model_input(), trajectory.timestep))
            done.append(trajectory.step)
        assert len(done) - 1 == unet_calls(recipe)
        assert done == sorted(done)
        assert {*done} == {*range(recipe.first_step, steps + 1)}


@pytest.mark.parametrize(
    ("name", "model"),
    [(name, model) for name in NAMES for model, own in MODELS.items() if can_sample(name, own)],
)
def test_it_is_diffusers_alone_and_in_a_crowd(name: SchedulerName, model: str, checkpoint: Checkpoint) -> None:
    own = MODELS[model]
    served = replace(checkpoint, scheduler_config=own)

    def ours(seed: int, recipe: Recipe) -> Trajectory:
        return Trajectory.of(recipe, seed, served, [EMBEDDING], ENCODER, CANVAS if recipe.init_image else None)

    recipes = [
        a_recipe(name, schedule, 10 if schedule == "align_your_steps" else 5, strength)
        for schedule in SCHEDULES
        if not refusal(name, schedule, 5)
        for strength in (None, *[0.6] * SAMPLERS[name].goes_on)
    ]
    alone = [together([ours(seed, recipe)])[0] for seed, recipe in enumerate(recipes)]
    for seed, (recipe, latents) in enumerate(zip(recipes, alone, strict=True)):
        expected = theirs(name, own, recipe.sigma_schedule, recipe, seed)
        off = float((latents - expected).norm() / expected.norm())
        assert off <= 1e-5, f"{recipe.sigma_schedule} from {recipe.strength}: {off:.1e}"
    crowd = together([ours(seed, recipe) for seed, recipe in enumerate(recipes)])
    assert all(torch.equal(one, other) for one, other in zip(alone, crowd, strict=True))
