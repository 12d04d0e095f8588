"""The denoising of one slot: its scheduler, its latents and its current step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

from serve_app.canvas import Canvas
from serve_app.recipe import Recipe, Variation
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.conditioning import Conditioning
from serve_app.replica.device import to_device
from serve_app.replica.encode import Encoder
from serve_app.replica.kept_steps import KeptStep, PendingStep, keep, restore, state_of
from serve_app.replica.prompts import PromptEmbedding
from serve_app.replica.schedulers import (
    begin_at,
    each_step,
    first_call,
    noise_levels,
    step_options,
    take_step,
)
from serve_app.replica.start import Start, start_of


@dataclass(frozen=True, slots=True)
class Guidance:
    """Combines the two rows of a guided prediction into one, as diffusers does."""

    scale: float
    rescale: float = 0.0

    def __call__(self, prediction: torch.Tensor) -> torch.Tensor:
        """Return one prediction from two rows, unconditional first."""
        unconditional, conditional = prediction.chunk(2)
        guided = unconditional + self.scale * (conditional - unconditional)
        return rescale_noise_cfg(guided, conditional, self.rescale) if self.rescale else guided


@dataclass(frozen=True, slots=True)
class Phase:
    """What the UNet is given after `step` steps besides latents and timestep, and what is made of its predictions."""

    step: int
    conditioning: Conditioning
    guidance: Guidance


class Trajectory:
    """The denoising state of one slot. Slots share no state, so a picture cannot depend on its neighbours in a batch.

    Attributes:
        latents: float32 (1, latent channels, height / 8, width / 8), between UNet calls.
        clean: the predicted clean latent (x0) of the last call; before the first, the latents of the start.
    """

    def __init__(
        self,
        start: Start,
        phases: Sequence[Phase],
        scheduler: Any,
        generator: torch.Generator,
    ) -> None:
        """Take a scheduler whose steps are set and the CPU generator of its step noise; no other slot may use them.

        `phases` are in the order of their steps; the first begins at 0.
        """
        self._phases = phases
        self.latents = self.clean = start.latents
        self._kept = start.kept
        self._channels = start.channels
        self._scheduler = scheduler
        begin_at(scheduler, start.step)
        self._timesteps: torch.Tensor = scheduler.timesteps
        self._unet_timesteps = to_device(self._timesteps.float(), start.latents.device)
        self._options = step_options(scheduler, generator)
        self._first_step, self._steps = start.step, len(each_step(scheduler, self._timesteps))
        self._call = first_call(scheduler, start.step)
        self._generator = generator
        self._unused = state_of(scheduler)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        seed: int,
        checkpoint: Checkpoint,
        embeddings: Sequence[PromptEmbedding],
        encoder: Encoder | None = None,
        canvas: Canvas | None = None,
        variations: Sequence[Variation] = (),
        before: Sequence[Sequence[PromptEmbedding]] = (),
    ) -> Self:
        """Return a recipe's trajectory. All its noise comes from one CPU generator with this seed, in float32.

        Only that of the start is moved by `variations`, each towards the first noise of its own seed.
        `encoder` remembers pictures; None: nothing is remembered. `before` are the embeddings of a branch's phases
        before its own.
        """
        encoder = encoder or Encoder(checkpoint, "none")
        name, schedule = recipe.scheduler or checkpoint.scheduler, recipe.sigma_schedule
        scheduler = checkpoint.prepared_schedulers.copy(name, recipe.num_inference_steps, schedule)
        generator = torch.Generator("cpu").manual_seed(seed)
        start = start_of(recipe, canvas, checkpoint, encoder, scheduler, generator, variations)
        begun = (0, *(phase.until_step for phase in recipe.before))
        phases = [
            Phase(
                step,
                Conditioning.of(phase, checkpoint, own),
                Guidance(phase.guidance_scale, phase.guidance_rescale),
            )
            for step, phase, own in zip(begun, recipe.phases, (*before, embeddings), strict=True)
        ]
        return cls(start, phases, scheduler, generator)

    def keep(self) -> PendingStep:
        """Return the state between two UNet calls, without waiting for the device."""
        return keep(self._call, self.latents, self.clean, self._generator, self._scheduler, self._unused)

    def go_on(self, kept: KeptStep) -> list[torch.Tensor]:
        """Go on from a state of this very trajectory, made anew: same recipe, seed and model. Return its tensors."""
        device = self.latents.device
        self.latents, self.clean = (to_device(part, device) for part in (kept.latents, kept.clean))
        self._generator.set_state(kept.noise)
        self._call = kept.call
        return [self.latents, self.clean, *restore(kept.solver, self._scheduler, device)]

    @property
    def conditioning(self) -> Conditioning:
        """The UNet's inputs for its next call, besides latents and timestep."""
        return self._phase.conditioning

    @property
    def _phase(self) -> Phase:
        step = self.step
        return next(phase for phase in reversed(self._phases) if phase.step <= step)

    @property
    def rows(self) -> int:
        """How many rows of a UNet batch its next call takes: 2 with guidance (unconditional first), otherwise 1."""
        return self.conditioning.rows

    @property
    def done(self) -> bool:
        return self._call == len(self._timesteps)

    @property
    def step(self) -> int:
        """How many steps of the schedule are done, counting those before the start. A step may take two UNet calls."""
        if self.done:
            return self._steps
        order = int(self._scheduler.order)
        extra = max(0, len(self._timesteps) - self._steps * order)
        return max(self._first_step, (self._call - extra) // order)

    @property
    def timestep(self) -> torch.Tensor:
        """The timestep of the next UNet call, a float32 scalar on the device."""
        return self._unet_timesteps[self._call]

    def model_input(self) -> torch.Tensor:
        """Return the UNet's input for its next call, (rows, channels, height, width)."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(self.latents, self._timesteps[self._call])
        sample = scaled if self._channels is None else torch.cat([scaled, self._channels], dim=1)
        return sample.expand(self.rows, -1, -1, -1)

    def advance(self, prediction: torch.Tensor) -> None:
        """Go on by one call of the UNet, with its prediction, (rows, channels, height, width)."""
        # Copy: the scheduler may keep it, and the UNet's next call overwrites it.
        prediction = prediction.to(torch.float32, copy=True)
        if self.rows == 2:
            prediction = self._phase.guidance(prediction)
        self.latents, self.clean = take_step(self._scheduler, self._call, prediction, self.latents, self._options)
        self._call += 1
        if self._kept is not None:
            levels = (1.0, 0.0) if self.done else noise_levels(self._scheduler, self._call)
            self.latents = self._kept.around(self.latents, levels)
            self.clean = self._kept.around(self.clean)
