from collections.abc import Sequence
from math import acos, sin

import numpy as np
import pytest
import torch

from serve_app.recipe import Variation
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.variations import between, varied
from tests.conftest import make_slot

SHAPE = (1, 4, 6, 5)


def noise(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def arcs(noise: torch.Tensor, other: torch.Tensor, strength: float) -> np.ndarray:
    """Mix as A1111's web UI does, column by column."""
    mixed = np.empty(SHAPE)
    for channel in range(SHAPE[1]):
        for column in range(SHAPE[3]):
            a, b = (one[0, channel, :, column].numpy().astype(float) for one in (noise, other))
            angle = acos(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
            mixed[0, channel, :, column] = (sin((1 - strength) * angle) * a + sin(strength * angle) * b) / sin(angle)
    return mixed


@pytest.mark.parametrize("strength", [0.0, 0.2, 0.75, 1.0])
def test_noises_are_mixed_as_in_a1111s_web_ui(strength: float) -> None:
    mixed = between(noise(1), noise(2), strength)
    assert mixed.dtype == torch.float32
    np.testing.assert_allclose(mixed.numpy(), arcs(noise(1), noise(2), strength), rtol=1e-5, atol=1e-6)


def test_its_ends_are_the_noises_themselves() -> None:
    assert torch.equal(between(noise(1), noise(2), 0), noise(1))
    assert torch.equal(between(noise(1), noise(2), 1), noise(2))
    assert torch.equal(between(noise(1), noise(1), 0.5), noise(1)), "there is no arc between a noise and itself"


def test_columns_of_one_number_have_no_arc_and_stay() -> None:
    low, high = (one[:, :, :1] for one in (noise(1), noise(2)))
    assert torch.equal(between(low, high, 0.2), low)


def test_variations_follow_each_other() -> None:
    assert torch.equal(varied(noise(1), ()), noise(1))
    chain = [Variation(seed=2, strength=0.3), Variation(seed=3, strength=0.1)]
    assert torch.equal(varied(noise(1), chain), between(between(noise(1), noise(2), 0.3), noise(3), 0.1))


def begun(checkpoint: Checkpoint, variations: Sequence[Variation]) -> Trajectory:
    recipe = make_slot(scheduler="euler_a").recipe
    embeddings = PromptEncoder(checkpoint.pipe, checkpoint.device, 4).conditions(
        PromptReader(checkpoint.pipe).read(recipe)
    )
    return Trajectory.of(recipe, 7, checkpoint, embeddings, variations=variations)


@torch.inference_mode()
def test_a_variation_moves_the_start_alone(checkpoint: Checkpoint) -> None:
    plain, moved = begun(checkpoint, ()), begun(checkpoint, [Variation(seed=8, strength=0.2)])
    assert not torch.equal(plain.latents, moved.latents)
    generators = [trajectory._options["generator"] for trajectory in (plain, moved)]
    first, second = (torch.randn(8, generator=generator) for generator in generators)
    assert torch.equal(first, second), "the noise of later steps is the seed's own"
