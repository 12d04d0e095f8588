"""Noise between that of two seeds, as A1111's web UI mixes a variation seed in."""

from collections.abc import Sequence

import torch

from serve_app.recipe import Variation

_NO_ARC = 1e-9
"""Sine of an angle below which there is no arc: a picture one latent high has columns of one number."""
_ALIKE = 0.9995
"""Mean cosine above which two noises count as one."""


def varied(noise: torch.Tensor, variations: Sequence[Variation]) -> torch.Tensor:
    """Return noise, (1, channels, h, w) in float32 on the CPU, moved towards that of each variation's seed in turn."""
    for variation in variations:
        assert variation.seed is not None, "the plan has chosen one"
        other = torch.Generator("cpu").manual_seed(variation.seed)
        noise = between(noise, torch.randn(noise.shape, generator=other, dtype=torch.float32), variation.strength)
    return noise


def between(noise: torch.Tensor, other: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the noise at `strength` (0 to 1) of the arcs from one noise to another, (1, channels, h, w) in float32.

    There is an arc for each column of each channel: A1111 takes norms over the height. Computed in float64, so that
    processors that round differently agree.
    """
    low, high = noise.double(), other.double()
    cosine = (low / low.norm(dim=2, keepdim=True) * (high / high.norm(dim=2, keepdim=True))).sum(2, keepdim=True)
    if cosine.mean() > _ALIKE:
        return noise
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    mixed = (((1 - strength) * angle).sin() * low + (strength * angle).sin() * high) / sine
    return torch.where(sine > _NO_ARC, mixed, low).float()
