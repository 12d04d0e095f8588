"""What is our own because diffusers needs scipy for it, against numbers that diffusers 0.42.1 gave beside scipy 1.17.1.

They come from `LMSDiscreteScheduler.from_config(MODELS["leading"], **options)` and its steps through `a_unet`, from
`set_timesteps(5)` of each class with `use_beta_sigmas=True`, and from `scipy.stats.beta.ppf(1 - linspace(0, 1, n), 0.6,
0.6)`. There all of `SAMPLERS` that take a beta schedule ended in 1 to 50 steps within 1e-6 of ours.
"""

from typing import Any

import numpy as np
import pytest
import torch

from serve_app.recipe import SchedulerName
from serve_app.replica.schedulers import each_step, make_scheduler, set_steps
from serve_app.replica.sigmas import beta_quantiles
from serve_app.samplers import SAMPLERS
from tests.replica.test_samplers import MODELS, a_unet

PLAIN: dict[str, Any] = {}
KARRAS: dict[str, Any] = {"use_karras_sigmas": True}
V: dict[str, Any] = {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}
LMS: list[tuple[dict[str, Any], int, list[float]]] = [
    (PLAIN, 1, [0.98288, -0.49541, 0.25957, -1.97597]),
    (PLAIN, 2, [1.2907, -0.66337, 0.92841, -2.71559]),
    (PLAIN, 3, [1.66719, -1.21834, 1.33518, -4.62914]),
    (PLAIN, 12, [5.62562, -3.70758, 6.74809, -14.13957]),
    (KARRAS, 6, [3.49239, -2.27088, 3.48093, -8.91773]),
    (V, 12, [0.45521, -0.3294, 0.34911, -1.16751]),
    ({"prediction_type": "sample"}, 4, [0.18217, -0.06492, -0.48242, -0.56806]),
]


@pytest.mark.parametrize(("options", "steps", "latents"), LMS)
def test_lms_is_diffusers(options: dict[str, Any], steps: int, latents: list[float]) -> None:
    scheduler = make_scheduler("lms", {**MODELS["leading"], **options})
    set_steps(scheduler, steps)
    sample = torch.tensor([1.0, -0.5, 0.25, -2.0]).reshape(1, 1, 2, 2) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        sample = scheduler.step(a_unet(scheduler.scale_model_input(sample, t), t), t, sample).prev_sample
    assert sample.flatten().tolist() == pytest.approx(latents, abs=1e-5)


def test_lms_goes_all_the_way_wherever_it_begins() -> None:
    """diffusers' takes the one derivative it has for one of four, and goes 55 of 24 parts of the way."""
    scheduler = make_scheduler("lms", MODELS["leading"])
    set_steps(scheduler, 20)
    scheduler.set_begin_index(10)
    sample, direction = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    for t in scheduler.timesteps[10:]:
        scheduler.scale_model_input(sample, t)
        sample = scheduler.step(direction, t, sample).prev_sample
    assert sample.flatten().tolist() == pytest.approx([-float(scheduler.sigmas[10])] * 4, rel=1e-5)


QUANTILES = {
    4: [1.0, 0.7245867092, 0.2754132908, 0.0],
    7: [1.0, 0.9085132044, 0.7245867092, 0.5, 0.2754132908, 0.09148679555, 0.0],
}


@pytest.mark.parametrize("steps", QUANTILES)
def test_quantiles_are_scipys(steps: int) -> None:
    assert beta_quantiles(steps).tolist() == pytest.approx(QUANTILES[steps], abs=2e-10)


@pytest.mark.parametrize("steps", [1, 2, 150, 998])
def test_there_are_quantiles_for_any_number_of_steps(steps: int) -> None:
    quantiles = beta_quantiles(steps)
    assert quantiles[0] == 1
    assert (np.diff(quantiles) < 0).all()
    assert quantiles[-1] == (steps == 1)


OF_ITS_STEPS = ([5.1344, 4.2397, 2.5879, 0.9361, 0.0413], [801.0, 757.86, 634.17, 334.18, 1.0])
OF_THE_MODEL = ([14.6146, 12.0523, 7.3219, 2.5916, 0.0292], [998, 966, 874, 634, 0])


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if "beta" in sampler.schedules])
def test_beta_levels_are_diffusers(name: SchedulerName) -> None:
    scheduler = make_scheduler(name, MODELS["leading"], "beta")
    set_steps(scheduler, 5, "beta")
    levels, timesteps = OF_ITS_STEPS if name in ("euler", "heun", "dpm2", "dpm2_a", "lms") else OF_THE_MODEL
    calls = len(scheduler.timesteps)
    assert each_step(scheduler, scheduler.sigmas[:calls]).tolist() == pytest.approx(levels, abs=1e-4)
    assert each_step(scheduler, scheduler.timesteps).tolist() == pytest.approx(timesteps, abs=1e-2)
