"""Latents to pixels."""

import torch

from serve_app.errors import SlotFailed
from serve_app.imaging import Pixels
from serve_app.replica.checkpoint import Checkpoint


def decode(checkpoint: Checkpoint, latents: torch.Tensor) -> Pixels:
    """Return the picture of one slot's final latents, (1, channels, h, w), as the stock pipeline would decode it.

    Raises SlotFailed where it holds values that are not numbers: as pixels they would be black, and a success.
    """
    config = checkpoint.vae.config
    latents = latents.to(checkpoint.vae.dtype) / config.scaling_factor
    if getattr(config, "latents_mean", None) and getattr(config, "latents_std", None):
        mean, std = (torch.tensor(v, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
        latents = latents * std + mean
    image = checkpoint.vae.decode(latents, return_dict=False)[0]
    if not torch.isfinite(image).all():
        raise SlotFailed("not_finite", "the model produced values that are not numbers; try another guidance_scale, scheduler or seed")
    return to_pixels(image)


def to_pixels(image: torch.Tensor) -> Pixels:
    """Return a decoder's output, (1, 3, h, w) in -1..1, as pixels on the CPU."""
    scaled = (image[0].float() * 0.5 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
