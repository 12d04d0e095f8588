"""A trajectory that goes on from a kept step has the bits of one that never stopped."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler

from serve_app.canvas import Canvas, Layer
from serve_app.recipe import SchedulerName, SigmaSchedule
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.denoise import Denoiser
from serve_app.replica.kept_steps import KeptStep
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.schedulers import SCHEDULER_NAMES, can_sample
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import eager
from tests.conftest import make_slot

STEPS = 6


def begun(checkpoint: Checkpoint, canvas: Canvas | None = None, **changes: Any) -> Trajectory:
    recipe = make_slot(num_inference_steps=STEPS, **changes).recipe
    embeddings = PromptEncoder(checkpoint.pipe, checkpoint.device, 4).conditions(
        PromptReader(checkpoint.pipe).read(recipe)
    )
    return Trajectory.of(recipe, 7, checkpoint, embeddings, canvas=canvas)


def goes_on_equal(checkpoint: Checkpoint, canvas: Canvas | None = None, **changes: Any) -> None:
    denoiser = Denoiser(checkpoint, eager(checkpoint.unet))

    def advance(trajectory: Trajectory) -> None:
        trajectory.advance(denoiser.predict([trajectory])[0])

    whole = begun(checkpoint, canvas, **changes)
    kept = []
    while not whole.done:
        kept.append(whole.keep().wait())
        advance(whole)
    for state in kept:
        later = begun(checkpoint, canvas, **changes)
        later.go_on(KeptStep.read(state))
        while not later.done:
            advance(later)
        assert torch.equal(later.latents, whole.latents)
        assert torch.equal(later.clean, whole.clean)


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
@torch.inference_mode()
def test_every_scheduler_goes_on_from_every_step(name: SchedulerName, checkpoint: Checkpoint) -> None:
    if not can_sample(name, checkpoint.scheduler_config):  # those of EDM
        checkpoint = replace(checkpoint, scheduler_config=dict(EDMEulerScheduler().config))
        assert can_sample(name, checkpoint.scheduler_config)
    goes_on_equal(checkpoint, scheduler=name)


@pytest.mark.parametrize("schedule", ["karras", "beta"])
@torch.inference_mode()
def test_so_does_one_with_a_schedule(schedule: SigmaSchedule, checkpoint: Checkpoint) -> None:
    goes_on_equal(checkpoint, scheduler="dpmpp_2m_sde", sigma_schedule=schedule)


@torch.inference_mode()
def test_so_does_one_that_began_with_a_part_of_a_picture(checkpoint: Checkpoint) -> None:
    image = Layer.of(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8))
    mask = Layer.of(np.tile(np.array([[0, 255]], dtype=np.uint8).repeat(32, axis=1), (64, 1)))
    given = {"init_image": "a picture", "mask_image": "a mask", "strength": 0.7}
    goes_on_equal(checkpoint, Canvas(image, mask), scheduler="euler_a", **given)


@torch.inference_mode()
def test_a_kept_step_is_small(checkpoint: Checkpoint) -> None:
    """A few latents: whatever else a scheduler holds is made anew."""
    denoiser = Denoiser(checkpoint, eager(checkpoint.unet))
    trajectory = begun(checkpoint, scheduler="dpmpp_3m_sde", width=256, height=256)
    for _ in range(4):
        trajectory.advance(denoiser.predict([trajectory])[0])
    latents = trajectory.latents.numel() * 4
    assert len(trajectory.keep().wait()) < 6 * latents + 10_000
