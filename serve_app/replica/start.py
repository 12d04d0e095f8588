"""Where a trajectory starts: pure noise, or a picture's latents with noise; all of it drawn as diffusers does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import interpolate

from serve_app.canvas import Canvas
from serve_app.recipe import Recipe, Variation
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.device import to_device
from serve_app.replica.encode import Encoded, Encoder
from serve_app.replica.schedulers import begin_at, first_call, noise_levels
from serve_app.replica.variations import varied


@dataclass(frozen=True, slots=True)
class Kept:
    """The part of a picture that is not generated, as latents, and its noise.

    `mask` is 1 where to generate, (1, 1, h, w). Only UNets that are not given the mask need this.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor

    def around(self, latents: torch.Tensor, levels: tuple[float, float] = (1.0, 0.0)) -> torch.Tensor:
        """Return latents with this part put back, at some `noise_levels`; by default without noise."""
        of_clean, of_noise = levels
        return (1 - self.mask) * (of_clean * self.clean + of_noise * self.noise) + self.mask * latents


@dataclass(frozen=True, slots=True)
class Start:
    """Where a trajectory begins: before step `step`, 0 being the first of the schedule.

    `latents` are float32 (1, latent channels, height / 8, width / 8), on the device, with that step's noise. `channels`
    are what an inpainting UNet is given beside them at each step: the mask and what is kept.
    """

    latents: torch.Tensor
    step: int = 0
    kept: Kept | None = None
    channels: torch.Tensor | None = None


def is_inpainting(checkpoint: Checkpoint) -> bool:
    """Return whether the UNet is given a mask and what is kept."""
    return bool(checkpoint.unet.config.in_channels != checkpoint.unet.config.out_channels)


def start_of(
    recipe: Recipe,
    canvas: Canvas | None,
    checkpoint: Checkpoint,
    encoder: Encoder,
    scheduler: Any,
    generator: torch.Generator,
    variations: Sequence[Variation] = (),
) -> Start:
    """Return the start of a recipe, and leave the generator and the scheduler where its first step needs them.

    The draws are diffusers': the picture's latents, the noise, what is kept (also where the UNet is not given it).
    """
    step, channels = recipe.first_step, is_inpainting(checkpoint)
    begin_at(scheduler, step)
    masked = channels or (canvas is not None and canvas.mask is not None)
    only_noise = canvas is None or (masked and recipe.strength == 1)
    clean = None
    if canvas is not None and not (channels and only_noise):
        clean = encoder.picture(canvas.image).sample(generator)
    noise = _noise(recipe, checkpoint, generator, variations)
    if only_noise:
        latents = noise * scheduler.init_noise_sigma
    else:
        assert clean is not None
        of_clean, of_noise = noise_levels(scheduler, first_call(scheduler, step))
        latents = of_clean * clean + of_noise * noise
    if channels:
        return Start(latents, step, channels=_channels(_outside(recipe, canvas, encoder), canvas, encoder, generator))
    if canvas is None or canvas.mask is None or clean is None:
        return Start(latents, step)
    encoder.picture(canvas.image).skip(generator)
    return Start(latents, step, Kept(clean, noise, _latent_mask(encoder.mask(canvas.mask), latents)))


def _noise(
    recipe: Recipe, checkpoint: Checkpoint, generator: torch.Generator, variations: Sequence[Variation]
) -> torch.Tensor:
    scale = checkpoint.pipe.vae_scale_factor
    shape = (1, checkpoint.unet.config.out_channels, recipe.height // scale, recipe.width // scale)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32)
    return to_device(varied(noise, variations), checkpoint.device)


def _outside(recipe: Recipe, canvas: Canvas | None, encoder: Encoder) -> Encoded:
    """Return what is kept of a picture; nothing where the whole is generated."""
    if canvas is None or canvas.mask is None:
        return encoder.grey(recipe.height, recipe.width)
    return encoder.kept(canvas.image, canvas.mask)


def _channels(outside: Encoded, canvas: Canvas | None, encoder: Encoder, generator: torch.Generator) -> torch.Tensor:
    kept = outside.sample(generator)
    if canvas is None or canvas.mask is None:
        return torch.cat([torch.ones_like(kept[:, :1]), kept], dim=1)
    return torch.cat([_latent_mask(encoder.mask(canvas.mask), kept), kept], dim=1)


def _latent_mask(mask: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return interpolate(mask, size=latents.shape[-2:])
