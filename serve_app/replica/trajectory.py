"""The denoising of one slot: its scheduler, its latents and its current step."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

from serve_app.canvas import Canvas
from serve_app.recipe import Recipe
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.conditioning import Conditioning
from serve_app.replica.device import to_device
from serve_app.replica.encode import Encoder
from serve_app.replica.prompts import PromptEmbedding
from serve_app.replica.schedulers import begin_at, make_scheduler, noise_levels, predicted_clean, set_steps
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


class Trajectory:
    """The denoising state of one slot. Slots share no state, so a picture cannot depend on its neighbours in a batch.

    Attributes:
        conditioning: the UNet's inputs besides latents and timestep.
        latents: float32 (1, latent channels, height / 8, width / 8), between steps.
        clean: the predicted clean latent (x0) of the last step; before the first, the latents of the start.
        step: how many steps of the schedule are done, counting those before the start.
    """

    def __init__(
        self,
        start: Start,
        conditioning: Conditioning,
        guidance: Guidance,
        scheduler: Any,
        generator: torch.Generator,
    ) -> None:
        """Take a scheduler whose steps are set and the CPU generator of its step noise; no other slot may use them."""
        self.conditioning = conditioning
        self.latents = self.clean = start.latents
        self.step = start.step
        self._kept = start.kept
        self._channels = start.channels
        self._guidance = guidance
        self._scheduler = scheduler
        begin_at(scheduler, start.step)
        self._timesteps: torch.Tensor = scheduler.timesteps
        self._unet_timesteps = to_device(self._timesteps.float(), start.latents.device)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self._step_noise = {"generator": generator} if takes_generator else {}

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        seed: int,
        checkpoint: Checkpoint,
        embeddings: Sequence[PromptEmbedding],
        encoder: Encoder | None = None,
        canvas: Canvas | None = None,
    ) -> Self:
        """Return a recipe's trajectory. All its noise comes from one CPU generator with this seed, in float32.

        `encoder` remembers pictures; None: nothing is remembered.
        """
        encoder = encoder or Encoder(checkpoint, "none")
        scheduler = make_scheduler(recipe.scheduler or checkpoint.scheduler, checkpoint.scheduler_config)
        set_steps(scheduler, recipe.num_inference_steps)
        generator = torch.Generator("cpu").manual_seed(seed)
        start = start_of(recipe, canvas, checkpoint, encoder, scheduler, generator)
        conditioning = Conditioning.of(recipe, checkpoint, embeddings)
        guidance = Guidance(recipe.guidance_scale, recipe.guidance_rescale)
        return cls(start, conditioning, guidance, scheduler, generator)

    @property
    def rows(self) -> int:
        """How many rows of a UNet batch this slot takes: 2 with guidance (unconditional first), otherwise 1."""
        return self.conditioning.rows

    @property
    def done(self) -> bool:
        return self.step == len(self._timesteps)

    @property
    def timestep(self) -> torch.Tensor:
        """The timestep of the next UNet call, a float32 scalar on the device."""
        return self._unet_timesteps[self.step]

    def model_input(self) -> torch.Tensor:
        """Return the UNet's input for the next step, (rows, channels, height, width)."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(self.latents, self._timesteps[self.step])
        sample = scaled if self._channels is None else torch.cat([scaled, self._channels], dim=1)
        return sample.expand(self.rows, -1, -1, -1)

    def advance(self, prediction: torch.Tensor) -> None:
        """Take one step with the UNet's prediction, (rows, channels, height, width)."""
        # Copy: the scheduler may keep it, and the UNet's next call overwrites it.
        prediction = prediction.to(torch.float32, copy=True)
        if self.rows == 2:
            prediction = self._guidance(prediction)
        output = self._scheduler.step(prediction, self._timesteps[self.step], self.latents, **self._step_noise)
        self.latents = output.prev_sample
        self.clean = predicted_clean(self._scheduler, output)
        self.step += 1
        if self._kept is not None:
            levels = (1.0, 0.0) if self.done else noise_levels(self._scheduler, self.step)
            self.latents = self._kept.around(self.latents, levels)
            self.clean = self._kept.around(self.clean)
