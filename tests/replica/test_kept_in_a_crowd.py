"""Trajectories that go on from one kept step, beside each other and beside others, as if they had never stopped."""

from dataclasses import replace

import pytest
import torch
from diffusers import EDMEulerScheduler

from serve_app.recipe import SchedulerName
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.kept_steps import KeptStep
from serve_app.replica.schedulers import SCHEDULER_NAMES, can_sample
from serve_app.replica.trajectory import Trajectory
from tests.replica.test_samplers import EMBEDDING, a_recipe, call, together

STEPS = 6


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_a_kept_step_can_be_gone_on_from_many_times_in_a_crowd(name: SchedulerName, checkpoint: Checkpoint) -> None:
    if not can_sample(name, checkpoint.scheduler_config):  # those of EDM
        checkpoint = replace(checkpoint, scheduler_config=dict(EDMEulerScheduler().config))

    def begun(seed: int) -> Trajectory:
        return Trajectory.of(a_recipe(name, None, STEPS, None), seed, checkpoint, [EMBEDDING])

    expected, other = together([begun(7), begun(8)])
    stopped, neighbour = begun(7), begun(8)
    kept = []
    while not stopped.done:
        kept.append(stopped.keep())
        call([stopped, neighbour])
    for state in [pending.wait() for pending in kept]:  # only now: going on has not changed what was being copied
        step = KeptStep.read(state)
        twins = [begun(7), begun(7)]
        for twin in twins:
            twin.go_on(step)
        call(twins[:1])
        *ended, beside = together([*twins, begun(8)])
        assert all(torch.equal(latents, expected) for latents in ended)
        assert torch.equal(beside, other)
    assert torch.equal(stopped.latents, expected), "keeping changes nothing"
