from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve_app.recipe import SchedulerName
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.conditioning import Conditioning, without_effect
from serve_app.replica.denoise import Denoiser
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.schedulers import make_scheduler, set_steps
from serve_app.replica.start import Start
from serve_app.replica.trajectory import Guidance, Phase, Trajectory
from serve_app.replica.unet import eager
from tests.conftest import make_slot

STEPS = 4


@pytest.mark.parametrize("name", ["euler", "ddim"])  # the others use earlier steps, or draw noise at each step
@torch.inference_mode()
def test_a_trajectory_can_begin_at_any_step(name: SchedulerName, checkpoint: Checkpoint) -> None:
    """Begun with another's latents at that step, it gives the same latents from there on."""
    recipe = make_slot(scheduler=name, num_inference_steps=STEPS).recipe
    prompts = PromptReader(checkpoint.pipe).read(recipe)
    embeddings = PromptEncoder(checkpoint.pipe, checkpoint.device, 4).conditions(prompts)
    denoiser = Denoiser(checkpoint, eager(checkpoint.unet))
    whole = Trajectory.of(recipe, 7, checkpoint, embeddings)
    passed = [whole.latents]
    while not whole.done:
        whole.advance(denoiser.predict([whole])[0])
        passed.append(whole.latents)
    for first in range(STEPS):
        scheduler = make_scheduler(name, checkpoint.scheduler_config)
        set_steps(scheduler, STEPS)
        start, phase = Start(passed[first], first), Phase(0, whole.conditioning, Guidance(recipe.guidance_scale))
        later = Trajectory(start, [phase], scheduler, torch.Generator())
        assert torch.equal(later.clean, start.latents)
        for expected in passed[first + 1 :]:
            assert not later.done
            later.advance(denoiser.predict([later])[0])
            assert torch.equal(later.latents, expected)
        assert later.done


@pytest.mark.parametrize(("guidance_scale", "rows"), [(5.0, 2), (0.0, 1)])
def test_a_conditioning_has_a_row_for_each_of_its_embeddings(
    guidance_scale: float, rows: int, checkpoint: Checkpoint
) -> None:
    encoder = PromptEncoder(checkpoint.pipe, checkpoint.device, 4)
    recipe = make_slot(guidance_scale=guidance_scale, width=128, negative_prompt="dull").recipe
    prompts = PromptReader(checkpoint.pipe).read(recipe)
    conditioning = Conditioning.of(recipe, checkpoint, encoder.conditions(prompts))
    assert [len(part) for part in conditioning if part is not None] == [rows] * 3
    own = encoder.encode(prompts.rows[-1]).context
    assert own is not None
    assert torch.equal(conditioning.context[-1:], own), "the prompt's comes last"
    assert conditioning.time_ids.tolist() == [[64, 128, 0, 0, 64, 128]] * rows


def test_slots_that_share_a_call_keep_their_rows_in_order() -> None:
    first, second = (Conditioning(*(torch.full((rows, 3), rows + part) for part in range(3))) for rows in (1, 2))
    assert Conditioning.joined([first]) is first
    joined = Conditioning.joined([first, second])
    for name in ("context", "pooled", "time_ids"):
        assert torch.equal(getattr(joined, name), torch.cat([getattr(first, name), getattr(second, name)]))


@pytest.mark.parametrize(
    ("settings", "width", "ignored"),
    [
        ({"negative_prompt": "dull", "guidance_rescale": 0.7}, 8, ["negative_prompt", "guidance_rescale"]),
        ({}, 8, []),
        ({"negative_prompt": "dull", "guidance_scale": 1.0}, 8, []),
        ({"negative_prompt": "dull"}, None, []),
    ],
)
def test_settings_that_a_unet_with_guidance_built_in_does_not_take_are_named(
    settings: dict[str, Any], width: int | None, ignored: list[str], checkpoint: Checkpoint
) -> None:
    unet = SimpleNamespace(config=SimpleNamespace(time_cond_proj_dim=width))
    recipe = make_slot(**{"guidance_scale": 5.0, **settings}).recipe
    told = without_effect(recipe, replace(checkpoint, unet=unet))
    assert [sentence.split(" has no effect: ")[0] for sentence in told] == ignored
