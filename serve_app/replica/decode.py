"""Decodes latents to pixels."""

from dataclasses import dataclass
from typing import Self

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from serve_app.config import Compile
from serve_app.errors import SlotFailed
from serve_app.imaging import Pixels
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.compilation import Forward, whole
from serve_app.replica.device import fast_layout, mark, to_host
from serve_app.replica.kept_models import KeptModels


class PendingPixels:
    """Pixels being copied from the device. `wait` waits for them, so that the denoising loop need not."""

    def __init__(self, image: torch.Tensor) -> None:
        """Take a decoder's output, (1, 3, h, w) in -1..1."""
        scaled = (image[0].float() * 0.5 + 0.5).clamp(0, 1) * 255
        pixels = scaled.round().to(torch.uint8).permute(1, 2, 0)
        # Without this check, NaN would become a black image and count as a success.
        self._finite = to_host(torch.isfinite(image).all())
        self._pixels = to_host(pixels)
        self._copied = mark(image.device)

    def wait(self) -> Pixels:
        """Return the pixels. Raises SlotFailed if the decoder's output is not finite."""
        self._copied()
        if not self._finite:
            raise SlotFailed(
                "not_finite",
                "the model produced values that are not numbers; try another guidance_scale, scheduler or seed, or "
                "smaller weights in prompts and scales of LoRAs",
            )
        return self._pixels.numpy()


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a VAE's latents are scaled for denoising, and normalised if it has statistics, (1, channels, 1, 1)."""

    factor: float
    statistics: tuple[torch.Tensor, torch.Tensor] | None

    @classmethod
    def of(cls, vae: AutoencoderKL, device: torch.device, dtype: torch.dtype) -> Self:
        """Return the scaling in a VAE's config, for latents of this device and type."""
        values = [getattr(vae.config, name, None) for name in ("latents_mean", "latents_std")]
        mean, std = (
            torch.tensor(value, device=device, dtype=dtype).view(1, -1, 1, 1) if all(values) else None
            for value in values
        )
        return cls(vae.config.scaling_factor, None if mean is None or std is None else (mean, std))

    def apply(self, latents: torch.Tensor) -> torch.Tensor:
        """Return scaled latents, computed as in diffusers' pipeline."""
        if self.statistics:
            mean, std = self.statistics
            return (latents - mean) * self.factor / std
        return self.factor * latents

    def undo(self, latents: torch.Tensor) -> torch.Tensor:
        """Return unscaled latents, computed as in diffusers' pipeline."""
        latents = latents / self.factor
        if self.statistics:
            mean, std = self.statistics
            latents = latents * std + mean
        return latents


class Decoder:
    """Runs the VAE of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, mode: Compile) -> None:
        self._vae = checkpoint.vae
        self._forward = decoder_forward(self._vae, mode, checkpoint.kept_models)
        self._layout = fast_layout(checkpoint.device)
        self._scaling = Scaling.of(self._vae, checkpoint.device, self._vae.dtype)

    def decode(self, latents: torch.Tensor) -> PendingPixels:
        """Return the picture of one slot's final latents, (1, channels, h, w), decoded as in diffusers' pipeline."""
        return PendingPixels(self._forward(self._unscaled(latents)))

    def warm_up(self, latents: torch.Tensor) -> None:
        """Prepare for latents of this shape. If `engine.compile` is `full`, other shapes run eagerly."""
        self._forward.warm_up(self._unscaled(latents))
        self.decode(latents).wait()

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        latents = self._scaling.undo(latents.to(self._vae.dtype))
        return latents.contiguous(memory_format=self._layout)


def decoder_forward(vae: AutoencoderKL | AutoencoderTiny, mode: Compile, kept: KeptModels) -> Forward[torch.Tensor]:
    """Return a VAE's decoder, latents to (rows, 3, h, w) in -1..1, compiled if `engine.compile` is `full`."""
    return whole(_decode, vae, mode, kept)


def _decode(vae: AutoencoderKL | AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    image: torch.Tensor = vae.decode(latents, return_dict=False)[0]
    return image
