"""Branches: pictures whose first steps have other prompts. test_equals_diffusers.py compares them with diffusers."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.branches import branched
from serve_app.messages import Generated, Kept, Slot
from serve_app.recipe import SchedulerName
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.conditioning import embedded_guidance
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.trajectory import Trajectory
from tests.conftest import MakeEngine, make_slot
from tests.replica.test_engine import pixels
from tests.replica.test_pictures_equal_diffusers import a_slot
from tests.replica.test_samplers import EMBEDDING

LONG = "a" * 76
"""Two chunks."""


def branch(*before: dict[str, Any], **settings: Any) -> Slot:
    return make_slot(**{"num_inference_steps": 6, "keep_pixels": True, "before": before, **settings})


BRANCHES = (
    branch({"until_step": 2, "prompt": LONG}, scheduler="euler"),
    branch({"until_step": 3, "guidance_scale": 1.0}, negative_prompt="dull", scheduler="heun"),
    branch({"until_step": 3, "negative_prompt": "dull"}, scheduler="pndm"),
    branch(
        {"until_step": 2, "prompt": LONG},
        {"until_step": 4, "guidance_scale": 3.0},
        scheduler="dpmpp_2m_sde",
        guidance_scale=1.0,
    ),
)
"""All of them change their group on the way."""


def differ(first: Generated, second: Generated) -> bool:
    return not np.array_equal(pixels(first), pixels(second))


@pytest.mark.parametrize("scheduler", ["euler_a", "heun"])
def test_a_branch_of_its_own_settings_is_the_plain_picture(scheduler: SchedulerName, make_engine: MakeEngine) -> None:
    engine = make_engine()
    plain, same, other = engine.generate(
        branch(scheduler=scheduler),
        branch({"until_step": 2, "prompt": make_slot().recipe.prompt}, {"until_step": 4}, scheduler=scheduler),
        branch({"until_step": 2, "prompt": "another"}, scheduler=scheduler),
    )
    assert not differ(plain, same)
    assert differ(plain, other)


def test_alone_in_a_crowd_and_resumed_on_another_engine(make_engine: MakeEngine) -> None:
    alone = make_engine(max_batch_size=1, keep_every=1)
    collectors = [alone.submit(slot) for slot in BRANCHES]
    expected = [collector.result() for collector in collectors]
    crowd = make_engine(max_batch_size=len(BRANCHES))
    for ours, whole in zip(crowd.generate(*reversed(BRANCHES)), reversed(expected), strict=True):
        assert not differ(ours, whole)
    for slot, whole, collector in zip(BRANCHES, expected, collectors, strict=True):
        kept = [event for event in collector.events if isinstance(event, Kept)]
        assert [event.step for event in kept] == [1, 2, 3, 4, 5]
        for later in crowd.generate(*[replace(slot, kept=state) for state in kept]):
            assert not differ(later, whole)


@pytest.mark.parametrize("scheduler", ["dpmpp_2m", "heun"])
def test_what_goes_on_from_a_kept_step_of_the_plain_picture_is_the_branch(
    scheduler: SchedulerName, make_engine: MakeEngine
) -> None:
    """How a picture that was only begun can go on as another."""
    engine, plain = make_engine(keep_every=3), branch(scheduler=scheduler)
    collector = engine.submit(plain)
    collector.result()
    (kept,) = [event for event in collector.events if isinstance(event, Kept)]
    left = replace(plain, recipe=branched(plain.recipe, kept.step, {"prompt": LONG, "guidance_scale": 3.0}))
    whole, resumed = engine.generate(left, replace(left, kept=kept))
    assert not differ(whole, resumed)


def test_a_branch_shares_calls_with_those_whose_prompts_are_as_long_at_its_step(make_engine: MakeEngine) -> None:
    (long_first, *_), plain, long = BRANCHES, branch(), branch(prompt=LONG)
    alone = make_engine(max_batch_size=1, keep_every=3)
    collector = alone.submit(long_first)
    whole, *others = collector.result(), *alone.generate(plain, long)
    (kept,) = [event for event in collector.events if isinstance(event, Kept)]
    crowd = make_engine(max_batch_size=4, images_per_call=3)
    resumed = replace(long_first, kept=kept)
    for ours, expected in zip(crowd.generate(long_first, plain, long, resumed), (whole, *others, whole), strict=True):
        assert np.abs(pixels(ours).astype(int) - pixels(expected)).max() <= 1, "but for rounding"
    assert max(crowd.watch.batches) == 3, "the branch, the plain picture and the one that goes on"


def test_steps_that_a_picture_leaves_out_count(make_engine: MakeEngine) -> None:
    def begun_with_a_picture(**settings: Any) -> Slot:
        return a_slot(0, "picture", "euler", 0.5, 6, **settings)  # begins after step 3

    engine = make_engine()
    slots = (
        begun_with_a_picture(),
        begun_with_a_picture(before=[{"until_step": 3, "prompt": LONG}]),
        begun_with_a_picture(before=[{"until_step": 4, "prompt": LONG}]),
    )
    plain, left_out, branched = engine.generate(*slots)
    assert not differ(plain, left_out)
    assert differ(plain, branched)
    together = make_engine(max_batch_size=2, images_per_call=2)
    together.generate(*slots[:2])
    assert together.watch.batches == [2, 2, 2]


@torch.inference_mode()
def test_a_unet_that_is_given_the_guidance_scale_is_given_that_of_each_phase(checkpoint: Checkpoint) -> None:
    config = SimpleNamespace(**{**checkpoint.unet.config, "time_cond_proj_dim": 16})
    distilled: Any = replace(checkpoint, unet=SimpleNamespace(config=config))
    recipe = branch({"until_step": 2, "guidance_scale": 3.0}).recipe
    trajectory = Trajectory.of(recipe, 7, distilled, [EMBEDDING], before=[[EMBEDDING]])
    given = [phase.conditioning.guidance for phase in trajectory._phases]
    for scale, phase in zip(given, recipe.phases, strict=True):
        expected = embedded_guidance(phase, distilled)
        assert scale is not None
        assert expected is not None
        assert torch.equal(scale, expected)
    assert len({tuple(scale.flatten().tolist()) for scale in given if scale is not None}) == 2


def test_what_is_not_read_is_told_of_all_phases(checkpoint: Checkpoint) -> None:
    slot = branch({"until_step": 2, "prompt": "b" * 76}, {"until_step": 3}, negative_prompt="c" * 76)
    told = PromptReader(checkpoint.pipe).read(slot.recipe, 75).warnings
    assert [warning.partition(" ")[0] for warning in told] == ["negative_prompt", "before.0.prompt"]
