from collections.abc import Iterable, Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
)

from serve_app.recipe import SchedulerName
from serve_app.replica.schedulers import (
    SCHEDULER_NAMES,
    can_sample,
    each_step,
    is_edm,
    make_scheduler,
    most_steps,
    scheduler_name,
    set_steps,
    step_options,
    take_step,
)
from serve_app.samplers import SAMPLERS, Spacing
from serve_app.schemas import PredictionType, TimestepSpacing
from tests.conftest import BETAS, ZERO_SNR

CONFIG = dict(EulerDiscreteScheduler(**BETAS).config)
CONFIG.pop("_use_default_values")  # other classes replace what it lists with their defaults
PREDICTIONS: tuple[PredictionType, ...] = get_args(PredictionType)
SPACINGS: tuple[TimestepSpacing, ...] = get_args(TimestepSpacing)
MOST = 998
"""The most that `limits.max_steps` allows."""
SPACED: tuple[SchedulerName, ...] = ("euler", "euler_a", "dpmpp_2m", "ddim", "unipc", "pndm")
"""Among them they have every way to space timesteps."""
LEFT: Mapping[SchedulerName, float] = {"deis": 0.15, "sa_solver": 0.15, "pndm": 0.25}
"""How far some stay from the answer: they end at the lowest level, not at none. `pndm` also takes together what the
model predicted at different levels, which differs in v-prediction."""
DISTILLED: tuple[SchedulerName, ...] = ("lcm", "tcd")


def config_for(name: SchedulerName, **changes: Any) -> dict[str, Any]:
    """Return a config that a scheduler can sample with."""
    config = dict(EDMEulerScheduler().config) if name.startswith("edm") else {**CONFIG, **changes}
    return {key: value for key, value in config.items() if key != "_use_default_values"}


def counts_for(name: SchedulerName) -> tuple[int, ...]:
    """Return numbers of steps, some of which diffusers' `trailing` gives a timestep too many."""
    return (1, 2, 4, 50) if name in DISTILLED else (1, 2, 3, 4, 20, 61, 103)


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_the_clean_latent_is_what_the_noise_was_added_to(name: SchedulerName) -> None:
    """A model that knows the answer: the prediction of x0 must be that answer after every call."""
    for prediction in PREDICTIONS:
        config = config_for(name, prediction_type=prediction)
        if can_sample(name, config):
            scheduler = make_scheduler(name, config)
            set_steps(scheduler, 5)
            _, clean, predicted = sampled(scheduler)
            assert max(float((each - clean).abs().max()) for each in predicted) < 2e-3, prediction


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_clipping_is_off_whatever_the_checkpoint_says(name: SchedulerName) -> None:
    assert not make_scheduler(name, {**DDIMScheduler().config, "clip_sample": True}).config.get("clip_sample")


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_a_checkpoints_own_scheduler_has_its_name(name: SchedulerName) -> None:
    scheduler = make_scheduler(name, config_for(name))
    assert scheduler_name({"_class_name": type(scheduler).__name__, **scheduler.config}) == name


@pytest.mark.parametrize("other", [CMStochasticIterativeScheduler(), DPMSolverMultistepScheduler(solver_order=3)])
def test_other_schedulers_have_no_name(other: Any) -> None:
    assert scheduler_name({"_class_name": type(other).__name__, **other.config}) is None


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_every_number_of_steps_has_as_many_timesteps(name: SchedulerName, spacing: TimestepSpacing) -> None:
    scheduler = make_scheduler(name, config_for(name, timestep_spacing=spacing))
    for steps in range(1, MOST + 1) if name in SPACED else counts_for(name):
        set_steps(scheduler, steps)
        timesteps = each_step(scheduler, scheduler.timesteps).numpy()
        assert len(timesteps) == steps
        if name.startswith("edm"):
            continue
        assert 0 <= timesteps[-1] <= timesteps[0] <= 999
        if spacing == "trailing" and SAMPLERS[name].spacing is not Spacing.NONE:
            assert np.abs(timesteps - (1000 - np.arange(steps) * 1000 / steps - 1)).max() <= 0.5
        if hasattr(scheduler, "sigmas"):
            levels = each_step(scheduler, scheduler.sigmas[: len(scheduler.timesteps)]).numpy()
            assert len(levels) == steps
            assert (np.diff(levels) < 0).all()
            assert name in ("deis", "sa_solver") or scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_where_diffusers_own_schedule_has_as_many_it_is_the_same(name: SchedulerName, spacing: TimestepSpacing) -> None:
    ours, stock = (make_scheduler(name, config_for(name, timestep_spacing=spacing)) for _ in range(2))
    for steps in (1, 2, 3, 4, 8, 20, 25, 50, *(() if name in DISTILLED else (99, 100))):
        set_steps(ours, steps)
        stock.set_timesteps(steps, device="cpu")
        assert torch.equal(ours.timesteps, stock.timesteps)
        assert not hasattr(ours, "sigmas") or torch.equal(ours.sigmas, stock.sigmas)


@pytest.mark.parametrize("steps", [1, 2, 14, 61, 859, MOST])
def test_karras_levels_come_in_any_number(steps: int) -> None:
    scheduler = make_scheduler("dpmpp_2m_karras", {**CONFIG, **ZERO_SNR})
    set_steps(scheduler, steps)
    assert len(scheduler.timesteps) == len(scheduler.sigmas) - 1 == steps
    assert (scheduler.sigmas.diff() < 0).all()


def sampled(scheduler: Any) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Sample with a model that always knows the answer; return the result, the answer and what was predicted of it."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 1, 2, 2, generator=generator) for _ in range(2))
    latents, options, predicted = noise * scheduler.init_noise_sigma, step_options(scheduler, generator), []
    for call in range(len(scheduler.timesteps)):
        answer = perfect_answer(scheduler, call, latents, clean)
        latents, x0 = take_step(scheduler, call, answer, latents, options)
        predicted.append(x0)
    return latents, clean, predicted


def perfect_answer(scheduler: Any, call: int, latents: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Return what a model predicts that knows the answer."""
    t, config = scheduler.timesteps[call], scheduler.config
    model_input = scheduler.scale_model_input(latents, t)
    if is_edm(config):
        sigma, data = scheduler.sigmas[call], config.sigma_data
        kept, sign = data**2 / (sigma**2 + data**2), 1 if config.prediction_type == "epsilon" else -1
        answer: torch.Tensor = (clean - kept * latents) * sign * (sigma**2 + data**2) ** 0.5 / (sigma * data)
        return answer
    variance = 1 / (1 + level_of(scheduler, call) ** 2) if hasattr(scheduler, "sigmas") else scheduler.alphas_cumprod[t]
    signal, noise = variance**0.5, (1 - variance) ** 0.5
    epsilon = (model_input - signal * clean) / noise
    answers: dict[str, torch.Tensor] = {
        "epsilon": epsilon,
        "sample": clean,
        "v_prediction": signal * epsilon - noise * clean,
    }
    return answers[config.prediction_type]


def level_of(scheduler: Any, call: int) -> Any:
    """Return the noise level of a UNet call: the second of a step may lie between two."""
    if scheduler.order == 2 and hasattr(scheduler, "sigmas_interpol") and call % 2:
        return scheduler.sigmas_interpol[call - hasattr(scheduler, "sigmas_up")]
    return scheduler.sigmas[call]


def samples_a_perfect_model(name: SchedulerName, config: dict[str, Any], counts: Iterable[int]) -> None:
    for steps in counts:
        scheduler = make_scheduler(name, config)
        set_steps(scheduler, steps)
        latents, clean, _ = sampled(scheduler)
        off = float((latents - clean).abs().max())
        assert off < LEFT.get(name, 0.05), f"{config.get('prediction_type')} in {steps} steps"


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_a_perfect_model_is_sampled_to_its_answer(name: SchedulerName, spacing: str, zero_snr: bool) -> None:
    for prediction in PREDICTIONS:
        changes = {"timestep_spacing": spacing, "rescale_betas_zero_snr": zero_snr, "prediction_type": prediction}
        config = config_for(name, **changes)
        if can_sample(name, config):
            counts = [1, 4, 21, 61] if name in SPACED else [1, 5]
            samples_a_perfect_model(name, config, counts[name == "pndm" :])


@pytest.mark.parametrize("name", SPACED)
@pytest.mark.parametrize("steps", [859, MOST])
def test_a_perfect_model_is_sampled_to_its_answer_in_the_most_steps_allowed(name: SchedulerName, steps: int) -> None:
    config = {**CONFIG, "timestep_spacing": "trailing", **(ZERO_SNR if name != "pndm" else {})}
    samples_a_perfect_model(name, config, [steps])


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_karras_overrides_flags_for_other_levels(name: SchedulerName) -> None:
    scheduler = make_scheduler(name, config_for(name, use_exponential_sigmas=True))
    assert bool(scheduler.config.get("use_karras_sigmas")) == (name == "dpmpp_2m_karras")


def test_a_schedule_that_does_not_exist_is_refused() -> None:
    short = {**CONFIG, "num_train_timesteps": 50, "timestep_spacing": "leading"}
    # One scheduler goes from 49 to 0; the others keep a timestep for the end, and the offset takes another.
    assert most_steps("ddim", {**short, "steps_offset": 0}, 100) == 50
    assert most_steps("dpmpp_2m", short, 100) == 48
    with pytest.raises(ValueError, match="no schedule of 60 steps"):
        set_steps(make_scheduler("unipc", short), 60)
