import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, LCMScheduler

from serve_app.replica.schedulers import SCHEDULER_NAMES, make_scheduler, predicted_clean, scheduler_name
from serve_app.schemas import SchedulerName

CONFIG = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").config


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_the_clean_latent_is_what_the_noise_was_added_to(name: SchedulerName) -> None:
    """A model that knows the answer: the prediction of x0 must be that answer after the very first step."""
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
def test_other_schedulers_have_none(other: LCMScheduler | DPMSolverMultistepScheduler) -> None:
    assert scheduler_name({"_class_name": type(other).__name__, **other.config}) is None
