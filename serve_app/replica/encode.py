"""Encodes pictures to latents, each once."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from serve_app.canvas import Layer
from serve_app.config import Compile
from serve_app.errors import SlotFailed
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.compilation import whole
from serve_app.replica.decode import Scaling
from serve_app.replica.device import fast_layout, to_device

_CACHE_SIZE = 32
"""Encoded pictures; those of 1024x1024 take half a megabyte each."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the VAE makes of a picture, in float32: latents, or their mean and deviation."""

    mean: torch.Tensor
    deviation: torch.Tensor | None
    scaling: Scaling

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Return scaled latents, (1, channels, h, w), drawn with a CPU generator as diffusers' pipelines draw them."""
        latents = self.mean
        if self.deviation is not None:
            latents = latents + self.deviation * to_device(_noise_like(latents, generator), latents.device)
        return self.scaling.apply(latents)

    def skip(self, generator: torch.Generator) -> None:
        """Draw what `sample` would, and use none of it."""
        if self.deviation is not None:
            _noise_like(self.mean, generator)


def _noise_like(latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(latents.shape, generator=generator, dtype=torch.float32)


class Encoder:
    """Runs the encoder of a checkpoint's VAE, for one picture at a time, so that none depends on others."""

    def __init__(self, checkpoint: Checkpoint, mode: Compile) -> None:
        self._vae = checkpoint.vae
        self._device = checkpoint.device
        self._forward = whole(_encode, self._vae, mode, checkpoint.kept_models)
        self._scaling = Scaling.of(self._vae, checkpoint.device, torch.float32)
        self._cache: OrderedDict[str, Encoded] = OrderedDict()

    def picture(self, image: Layer) -> Encoded:
        return self._cached(image.digest, lambda: self._values(image))

    def kept(self, image: Layer, mask: Layer) -> Encoded:
        """Return what a picture's part outside a mask becomes; the rest is grey."""
        return self._cached(image.digest + mask.digest, lambda: self._values(image) * (self.mask(mask) < 0.5))

    def grey(self, height: int, width: int) -> Encoded:
        """Return what a grey picture becomes, which is all that is kept of one that is generated as a whole."""
        return self._cached(f"{height}x{width}", lambda: torch.zeros(1, 3, height, width, device=self._device))

    def mask(self, mask: Layer) -> torch.Tensor:
        """Return a mask on the device, float32 (1, 1, height, width): 1 where to generate."""
        return to_device(torch.from_numpy((mask.values >= 128).astype(np.float32))[None, None], self._device)

    def warm_up(self, height: int, width: int) -> None:
        """Prepare for pictures of this size, in pixels."""
        if self._can_encode:
            self._forward.warm_up(self._placed(torch.zeros(1, 3, height, width, device=self._device)))
            self.grey(height, width)

    @property
    def _can_encode(self) -> bool:
        return can_encode(self._vae)

    def _values(self, image: Layer) -> torch.Tensor:
        """Return a picture on the device, float32 (1, 3, height, width) in -1..1."""
        pixels = to_device(torch.from_numpy(image.values.copy()), self._device)
        return 2.0 * (pixels.permute(2, 0, 1)[None].float() / 255.0) - 1.0

    def _cached(self, key: str, picture: Callable[[], torch.Tensor]) -> Encoded:
        if key not in self._cache:
            self._cache[key] = self._encode(picture())
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _encode(self, picture: torch.Tensor) -> Encoded:
        if not self._can_encode:
            raise SlotFailed("no_encoder", "the served model's VAE has no encoder, so it cannot go on from a picture")
        made = self._forward(self._placed(picture))
        if isinstance(self._vae, AutoencoderTiny):
            return Encoded(made.float(), None, self._scaling)
        spread = DiagonalGaussianDistribution(made)
        return Encoded(spread.mean.float(), spread.std.float(), self._scaling)

    def _placed(self, picture: torch.Tensor) -> torch.Tensor:
        return picture.to(self._vae.dtype).contiguous(memory_format=fast_layout(self._device))


def can_encode(vae: AutoencoderKL | AutoencoderTiny) -> bool:
    """Return whether a VAE can encode pictures: that of a single file with a tiny one may hold its decoder alone."""
    return not isinstance(vae.encoder, nn.Identity)


def _encode(vae: AutoencoderKL | AutoencoderTiny, picture: torch.Tensor) -> torch.Tensor:
    """Return the latents of a tiny VAE, or the parameters of the latents' distribution."""
    made = vae.encode(picture, return_dict=False)[0]
    latents: torch.Tensor = made if isinstance(made, torch.Tensor) else made.parameters
    return latents
