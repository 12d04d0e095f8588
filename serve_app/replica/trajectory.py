"""The way of one slot through latent space: its noise, its scheduler and its place among the steps."""

import inspect
from collections.abc import Sequence

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

from serve_app.recipe import Recipe
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.device import to_device
from serve_app.replica.prompts import PromptEmbedding
from serve_app.replica.schedulers import make_scheduler, predicted_clean, set_steps


class Trajectory:
    """The denoising state of one slot.

    Everything random comes from one CPU generator seeded with the slot's seed, in float32, and everything that has
    state belongs to this slot, so the picture cannot depend on the neighbours in a batch.

    Attributes:
        latents: float32 (1, latent channels, height / 8, width / 8), between steps.
        clean: the predicted clean latent (x0) of the last step; before the first, the noise.
        step: how many steps are done, 0..len(timesteps).
    """

    def __init__(
        self, recipe: Recipe, seed: int, checkpoint: Checkpoint, conditions: Sequence[PromptEmbedding]
    ) -> None:
        device = checkpoint.device
        self._guidance_scale, self._guidance_rescale = recipe.guidance_scale, recipe.guidance_rescale
        self._scheduler = make_scheduler(recipe.scheduler or checkpoint.scheduler, checkpoint.scheduler_config)
        set_steps(self._scheduler, recipe.num_inference_steps)
        self._timesteps: torch.Tensor = self._scheduler.timesteps
        self._unet_timesteps = to_device(self._timesteps.float(), device)
        generator = torch.Generator("cpu").manual_seed(seed)
        takes_generator = "generator" in inspect.signature(self._scheduler.step).parameters
        self._step_noise = {"generator": generator} if takes_generator else {}

        scale = checkpoint.pipe.vae_scale_factor
        shape = (1, checkpoint.unet.config.in_channels, recipe.height // scale, recipe.width // scale)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        self.latents = to_device(noise, device) * self._scheduler.init_noise_sigma
        self.clean = self.latents
        self.step = 0

        size = torch.tensor([[recipe.height, recipe.width, 0, 0, recipe.height, recipe.width]], dtype=checkpoint.dtype)
        self.context = torch.cat([c.context for c in conditions])
        self.pooled = torch.cat([c.pooled for c in conditions])
        self.time_ids = to_device(size.repeat(len(conditions), 1), device)

    @property
    def rows(self) -> int:
        """How many rows of a UNet batch this slot takes: 2 with guidance (unconditional first), else 1."""
        return len(self.context)

    @property
    def total_steps(self) -> int:
        return len(self._timesteps)

    @property
    def done(self) -> bool:
        return self.step == self.total_steps

    @property
    def timestep(self) -> torch.Tensor:
        """The timestep of the next UNet call, a float32 scalar on the device."""
        return self._unet_timesteps[self.step]

    def model_input(self) -> torch.Tensor:
        """Return the UNet's input for the next step, (rows, channels, height, width)."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(self.latents, self._timesteps[self.step])
        return scaled.expand(self.rows, -1, -1, -1)

    def advance(self, prediction: torch.Tensor) -> None:
        """Take one step with the UNet's prediction, (rows, channels, height, width)."""
        prediction = prediction.to(
            torch.float32, copy=True
        )  # a scheduler may keep it, the UNet's next call overwrites it
        if self.rows == 2:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + self._guidance_scale * (conditional - unconditional)
            if self._guidance_rescale:
                prediction = rescale_noise_cfg(prediction, conditional, self._guidance_rescale)
        output = self._scheduler.step(prediction, self._timesteps[self.step], self.latents, **self._step_noise)
        self.latents = output.prev_sample
        self.clean = predicted_clean(self._scheduler, output)
        self.step += 1
