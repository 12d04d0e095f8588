import inspect
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler

from serve_app.recipe import SchedulerName
from serve_app.replica.schedulers import (
    SCHEDULER_NAMES,
    make_scheduler,
    most_steps,
    predicted_clean,
    scheduler_name,
    set_steps,
)
from serve_app.schemas import PredictionType, TimestepSpacing
from tests.conftest import BETAS, ZERO_SNR

CONFIG = dict(EulerDiscreteScheduler(**BETAS).config)
CONFIG.pop("_use_default_values")  # other classes replace what it lists with their defaults
PREDICTIONS: tuple[PredictionType, ...] = get_args(PredictionType)
SPACINGS: tuple[TimestepSpacing, ...] = get_args(TimestepSpacing)
MOST = 998
"""The most that `limits.max_steps` allows."""


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_the_clean_latent_is_what_the_noise_was_added_to(name: SchedulerName) -> None:
    """A model that knows the answer: the prediction of x0 must be that answer after the first step."""
    scheduler = make_scheduler(name, CONFIG)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 4, 8, 8, generator=generator)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    t = scheduler.timesteps[0]
    noisy = scheduler.add_noise(clean, noise, t.reshape(1))
    output = scheduler.step(noise, t, noisy)
    assert torch.allclose(predicted_clean(scheduler, output), clean, atol=1e-3)


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_clipping_is_off_whatever_the_checkpoint_says(name: SchedulerName) -> None:
    assert not make_scheduler(name, {**DDIMScheduler().config, "clip_sample": True}).config.get("clip_sample")


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_a_checkpoints_own_scheduler_has_its_name(name: SchedulerName) -> None:
    scheduler = make_scheduler(name, CONFIG)
    assert scheduler_name({"_class_name": type(scheduler).__name__, **scheduler.config}) == name


@pytest.mark.parametrize("other", [LCMScheduler(), DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")])
def test_other_schedulers_have_no_name(other: LCMScheduler | DPMSolverMultistepScheduler) -> None:
    assert scheduler_name({"_class_name": type(other).__name__, **other.config}) is None


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", [name for name in SCHEDULER_NAMES if name != "dpmpp_2m_karras"])
def test_every_number_of_steps_has_as_many_timesteps(name: SchedulerName, spacing: TimestepSpacing) -> None:
    scheduler = make_scheduler(name, {**CONFIG, "timestep_spacing": spacing})
    for steps in range(1, MOST + 1):
        set_steps(scheduler, steps)
        timesteps = scheduler.timesteps.numpy()
        assert len(timesteps) == steps
        assert 0 <= timesteps[-1] <= timesteps[0] <= 999
        if spacing == "trailing":
            assert np.abs(timesteps - (1000 - np.arange(steps) * 1000 / steps - 1)).max() <= 0.5
        if name != "ddim":  # which has no levels of its own
            levels = scheduler.sigmas.numpy()
            assert len(levels) == steps + 1
            assert levels[-1] == 0
            assert (np.diff(levels) < 0).all()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_where_diffusers_own_schedule_has_as_many_it_is_the_same(name: SchedulerName, spacing: TimestepSpacing) -> None:
    ours, stock = (make_scheduler(name, {**CONFIG, "timestep_spacing": spacing}) for _ in range(2))
    for steps in (1, 2, 3, 4, 8, 20, 25, 50, 99, 100):
        set_steps(ours, steps)
        stock.set_timesteps(steps)
        assert torch.equal(ours.timesteps, stock.timesteps)
        assert name == "ddim" or torch.equal(ours.sigmas, stock.sigmas)


@pytest.mark.parametrize("steps", [1, 2, 14, 61, 859, MOST])
def test_karras_levels_come_in_any_number(steps: int) -> None:
    scheduler = make_scheduler("dpmpp_2m_karras", {**CONFIG, **ZERO_SNR})
    set_steps(scheduler, steps)
    assert len(scheduler.timesteps) == len(scheduler.sigmas) - 1 == steps
    assert (scheduler.sigmas.diff() < 0).all()


def ends_at(scheduler: Any, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample with a model that always knows the answer; return the result and the answer."""
    set_steps(scheduler, steps)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 1, 2, 2, generator=generator) for _ in range(2))
    latents = noise * scheduler.init_noise_sigma
    own = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for i, t in enumerate(scheduler.timesteps):
        variance = 1 / (1 + scheduler.sigmas[i] ** 2) if hasattr(scheduler, "sigmas") else scheduler.alphas_cumprod[t]
        model_input, signal, sigma = latents, variance**0.5, (1 - variance) ** 0.5
        if hasattr(scheduler, "is_scale_input_called"):
            model_input = scheduler.scale_model_input(latents, t)
        epsilon = (model_input - signal * clean) / sigma
        answers = {"epsilon": epsilon, "sample": clean, "v_prediction": signal * epsilon - sigma * clean}
        latents = scheduler.step(answers[scheduler.config.prediction_type], t, latents, **own).prev_sample
    return latents, clean


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_a_perfect_model_is_sampled_to_its_answer(name: SchedulerName, spacing: str, zero_snr: bool) -> None:
    config = {**CONFIG, "timestep_spacing": spacing, "rescale_betas_zero_snr": zero_snr}
    for prediction, steps in product(PREDICTIONS, (1, 4, 21, 61)):
        if (name, prediction) == ("euler_a", "sample") or (name, prediction, zero_snr) == ("ddim", "epsilon", True):
            continue  # refused: tests/replica/test_scheduler_config.py
        latents, clean = ends_at(make_scheduler(name, {**config, "prediction_type": prediction}), steps)
        assert torch.allclose(latents, clean, atol=0.05), f"{prediction} in {steps} steps"


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
@pytest.mark.parametrize("steps", [859, MOST])
def test_a_perfect_model_is_sampled_to_its_answer_in_the_most_steps_allowed(name: SchedulerName, steps: int) -> None:
    scheduler = make_scheduler(name, {**CONFIG, **ZERO_SNR, "timestep_spacing": "trailing"})
    latents, clean = ends_at(scheduler, steps)
    assert torch.allclose(latents, clean, atol=0.05)


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_karras_overrides_flags_for_other_levels(name: SchedulerName) -> None:
    scheduler = make_scheduler(name, {**CONFIG, "use_exponential_sigmas": True})
    assert bool(scheduler.config.get("use_karras_sigmas")) == (name == "dpmpp_2m_karras")


def test_a_schedule_that_does_not_exist_is_refused() -> None:
    short = {**CONFIG, "num_train_timesteps": 50, "timestep_spacing": "leading"}
    # One scheduler goes from 49 to 0; the others keep a timestep for the end, and the offset takes another.
    assert most_steps("ddim", {**short, "steps_offset": 0}, 100) == 50
    assert most_steps("dpmpp_2m", short, 100) == 48
    with pytest.raises(ValueError, match="no schedule of 60 steps"):
        set_steps(make_scheduler("unipc", short), 60)
