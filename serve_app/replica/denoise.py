"""One UNet call for many slots, which may differ in prompt, step, scheduler and guidance."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import torch

from serve_app.recipe import Recipe
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.compilation import Forward
from serve_app.replica.conditioning import Conditioning
from serve_app.replica.device import fast_layout
from serve_app.replica.prompt_reader import ReadPrompts
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import UNetInputs


@dataclass(frozen=True, slots=True)
class CallGroup:
    """What slots must have in common to share a UNet call: the size in pixels, how long their prompts are, whether
    only half of the rows have one, and the UNet's weights.
    """

    height: int
    width: int
    prompt_chunks: int
    half: bool = False
    adapters: Hashable = None

    @classmethod
    def of(cls, recipe: Recipe, prompts: ReadPrompts, adapters: Hashable = None) -> Self:
        """Return a slot's group. `adapters` tells its adapters from others; None: there are none."""
        return cls(recipe.height, recipe.width, prompts.chunks, prompts.half, adapters)


class Denoiser:
    """Runs the UNet of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, forward: Forward[torch.Tensor]) -> None:
        self._dtype = checkpoint.dtype
        self._layout = fast_layout(checkpoint.device)
        self._forward = forward

    def predict(self, trajectories: Sequence[Trajectory]) -> Sequence[torch.Tensor]:
        """Return the UNet's predictions for the next step of every trajectory, each (its rows, channels, h, w).

        They are valid until the next call. All slots must have the same `CallGroup`.
        """
        rows = [t.rows for t in trajectories]
        prediction = self._forward(*self._inputs(trajectories))
        return torch.split(prediction, rows)

    def warm_up(self, trajectories: Sequence[Trajectory]) -> None:
        """Prepare for such calls: compile, load kernels and capture CUDA graphs, as far as they are in use."""
        self._forward.warm_up(*self._inputs(trajectories))

    def _inputs(self, trajectories: Sequence[Trajectory]) -> Sequence[torch.Tensor]:
        sample = torch.cat([t.model_input() for t in trajectories])
        return UNetInputs(
            sample=sample.to(self._dtype, memory_format=self._layout),
            timestep=torch.cat([t.timestep.expand(t.rows) for t in trajectories]),
            **Conditioning.joined([t.conditioning for t in trajectories])._asdict(),
        ).tensors
