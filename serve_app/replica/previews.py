"""Previews: when one is due, and how it is decoded."""

from dataclasses import dataclass

import torch
from torch.nn.functional import adaptive_avg_pool2d

from serve_app.imaging import Pixels
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import to_pixels


@dataclass(slots=True)
class PreviewPace:
    """Decides for one slot which of the steps that a preview is wanted of get one.

    At most one is wanted at a time: while the last one is too recent or still being encoded, a newer step takes the
    place of an older one.
    """

    steps: frozenset[int]
    min_interval_s: float
    wanted: tuple[int, torch.Tensor] | None = None
    busy: bool = False
    _last: float = float("-inf")

    def step_done(self, step: int, clean: torch.Tensor) -> None:
        """Note the predicted clean latent after `step` if a preview of it is wanted."""
        if step in self.steps:
            self.wanted = (step, clean)

    def take(self, now: float) -> tuple[int, torch.Tensor] | None:
        """Return the step and latent to decode now, or None."""
        if self.wanted is None or self.busy or now - self._last < self.min_interval_s:
            return None
        wanted, self.wanted = self.wanted, None
        self.busy, self._last = True, now
        return wanted


def decode_preview(checkpoint: Checkpoint, clean: torch.Tensor, max_size: int) -> Pixels:
    """Return the predicted picture of a clean latent, (1, channels, h, w), at most `max_size` pixels on its longest side.

    Raises RuntimeError where the checkpoint has no preview VAE.
    """
    if checkpoint.preview_vae is None:
        raise RuntimeError("the checkpoint has no preview VAE")
    longest = max(clean.shape[-2:]) * checkpoint.pipe.vae_scale_factor
    factor = -(-longest // max_size)
    pooled = adaptive_avg_pool2d(clean, (max(1, clean.shape[-2] // factor), max(1, clean.shape[-1] // factor))) if factor > 1 else clean
    return to_pixels(checkpoint.preview_vae.decode(pooled.to(checkpoint.preview_vae.dtype), return_dict=False)[0])
