"""Previews: when one is due, and how it is decoded."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import ceil

import torch
from diffusers import AutoencoderTiny
from torch.nn.functional import avg_pool2d

from serve_app.config import Compile
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import PendingPixels, Scaling, decoder_forward
from serve_app.replica.device import fast_layout

_SDXL_FACTOR = 0.13025
"""The scaling factor of SDXL's VAE. Tiny VAEs are trained on its latents times this factor."""


@dataclass(slots=True)
class PreviewPace:
    """Decides which of the requested steps of a slot get a preview.

    At most one preview is pending. While the last one is too recent or still being encoded, a newer step replaces an
    older one.
    """

    steps: frozenset[int]
    min_interval_s: float
    wanted: tuple[int, torch.Tensor] | None = None
    busy: bool = False
    _last: float = float("-inf")

    def step_done(self, step: int, clean: torch.Tensor) -> None:
        """Keep the predicted clean latent after `step` if a preview of that step was requested; of each step once."""
        if step in self.steps:
            self.wanted, self.steps = (step, clean), self.steps - {step}

    def take(self, now: float) -> tuple[int, torch.Tensor] | None:
        """Return the step and latent to decode now, or None."""
        if self.wanted is None or self.busy or now - self._last < self.min_interval_s:
            return None
        wanted, self.wanted = self.wanted, None
        self.busy, self._last = True, now
        return wanted


class PreviewDecoder:
    """Runs the preview VAE of a checkpoint, on its own CUDA stream in parallel with denoising."""

    def __init__(self, checkpoint: Checkpoint, vae: AutoencoderTiny, max_size: int, mode: Compile) -> None:
        self._forward = decoder_forward(vae, mode, checkpoint.kept_models)
        self._dtype = vae.dtype
        self._layout = fast_layout(checkpoint.device)
        self._scale: int = checkpoint.pipe.vae_scale_factor
        self._max_size = max_size
        self._scaling = Scaling.of(checkpoint.vae, checkpoint.device, torch.float32)
        self._tiny_factor, self._tiny_shift = vae.config.scaling_factor, vae.config.shift_factor
        self._stream = torch.cuda.Stream() if checkpoint.device.type == "cuda" else None

    def decode(self, clean: torch.Tensor, timing: AbstractContextManager[None] | None = None) -> PendingPixels:
        """Return the picture of a predicted clean latent, (1, channels, h, w).

        It has the latent's aspect ratio, and its longer side is at most `max_size` pixels. `timing` is open while the
        work is launched, on the stream where it runs.
        """
        timing = timing or nullcontext()
        if self._stream is None:
            with timing:
                return self._decode(clean)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), timing:
            pixels = self._decode(clean)
        clean.record_stream(self._stream)  # keeps its memory from being reused before the stream is done
        return pixels

    def warm_up(self, clean: torch.Tensor) -> None:
        """Prepare for clean latents of this shape."""
        self._forward.warm_up(self._pooled(clean))
        self.decode(clean).wait()

    def _decode(self, clean: torch.Tensor) -> PendingPixels:
        image = self._forward(self._pooled(clean))
        height, width = (max(1, round(side * self._scale / self._factor(clean))) for side in clean.shape[-2:])
        return PendingPixels(image[..., :height, :width])

    def _learned(self, clean: torch.Tensor) -> torch.Tensor:
        """Return a clean latent, scaled as tiny VAEs were trained.

        That is the scale of denoising, except in checkpoints that normalise latents, which SDXL itself does not.
        """
        if self._scaling.statistics:
            clean = self._scaling.undo(clean) * _SDXL_FACTOR
        learned: torch.Tensor = clean / self._tiny_factor + self._tiny_shift
        return learned

    def _pooled(self, clean: torch.Tensor) -> torch.Tensor:
        clean = self._learned(clean)
        # Pool in squares of one size; `_decode` crops what the last ones add. Otherwise the picture would be stretched.
        pooled = avg_pool2d(clean, self._factor(clean), ceil_mode=True)
        return pooled.to(self._dtype).contiguous(memory_format=self._layout)

    def _factor(self, clean: torch.Tensor) -> int:
        return ceil(max(clean.shape[-2:]) * self._scale / self._max_size)
