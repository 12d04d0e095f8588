"""A picture to go on from, brought to the size of a slot. Pillow and numpy alone."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.ImageFilter import GaussianBlur

from serve_app.crop import Box, cropped_to, filled_to, region_of

Values = NDArray[np.uint8]

_SCALING = Pillow.Resampling.LANCZOS
_HALF = 128
"""From this value on a mask says to generate, as in diffusers."""
_LATENT = 8
"""Pixels of a latent's side. A mask counts at the first pixel of each, as in diffusers."""


class MaskIsEmpty(ValueError):
    """A mask leaves nothing to generate."""


class Settings(Protocol):
    """The settings of a recipe that say how a picture is used."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def mask_blur(self) -> int: ...
    @property
    def padding_mask_crop(self) -> int | None: ...
    @property
    def keep_outside(self) -> bool: ...


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Values and their hash: (height, width, 3) of a picture, (height, width) of a mask."""

    values: Values
    digest: str

    @classmethod
    def of(cls, values: Values) -> "Layer":
        values = np.ascontiguousarray(values)
        return cls(values, hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest())


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What a generated part is put into: a picture, and a mask of how much of the part shows, 0 to 255.

    `box` is where the part belongs, scaled to its size; None: everywhere.
    """

    picture: Values
    mask: Values
    box: Box | None

    def around(self, part: Values) -> Values:
        """Return the picture with a generated part in it."""
        below, above = Pillow.fromarray(self.picture), Pillow.fromarray(part)
        if self.box:
            left, top, right, bottom = self.box
            scaled, above = cropped_to(above, right - left, bottom - top), below.copy()
            above.paste(scaled, (left, top))
        return np.asarray(Pillow.composite(above, below, Pillow.fromarray(self.mask)))


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """What slots begin with besides noise, all of their size.

    `mask` is 255 where to generate and 0 elsewhere; None: everywhere. `warnings` say what a person should know of it.
    """

    image: Layer
    mask: Layer | None = None
    surroundings: Surroundings | None = None
    warnings: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """About how many bytes it takes."""
        layers = [layer.values for layer in (self.image, self.mask) if layer]
        kept = [self.surroundings.picture, self.surroundings.mask] if self.surroundings else []
        return sum(values.nbytes for values in (*layers, *kept))

    def finished(self, pixels: Values) -> Values:
        """Return a generated picture with what was to be kept put back."""
        return self.surroundings.around(pixels) if self.surroundings else pixels


def canvas_of(picture: Pillow.Image, mask: Pillow.Image | None, settings: Settings) -> Canvas:
    """Return the canvas of a picture (RGB) and a mask (L), used as diffusers' pipelines do.

    Raises MaskIsEmpty.
    """
    width, height = size = settings.width, settings.height
    picture = picture.resize(size, _SCALING)
    if mask is None:
        return Canvas(Layer.of(np.asarray(picture)))
    mask = mask.resize(size, _SCALING)
    if settings.mask_blur:
        mask = mask.filter(GaussianBlur(settings.mask_blur))
    if not _chosen(mask).any():
        raise MaskIsEmpty
    part, part_mask, box = picture, mask, None
    if settings.padding_mask_crop is not None:
        box = region_of(np.asarray(mask), width, height, settings.padding_mask_crop)
        part, part_mask = (filled_to(whole.crop(box), width, height) for whole in (picture, mask))
    chosen = _chosen(part_mask)
    if not chosen[::_LATENT, ::_LATENT].any():
        raise MaskIsEmpty
    return Canvas(
        Layer.of(np.asarray(part)),
        Layer.of(chosen.astype(np.uint8) * 255),
        _surroundings(picture, mask, box, keep_outside=settings.keep_outside),
    )


def _chosen(mask: Pillow.Image) -> NDArray[np.bool_]:
    return np.asarray(mask) >= _HALF


def _surroundings(
    picture: Pillow.Image, mask: Pillow.Image, box: Box | None, *, keep_outside: bool
) -> Surroundings | None:
    if keep_outside:
        return Surroundings(np.asarray(picture), np.asarray(mask), box)
    if box is None:
        return None
    within = Pillow.new("L", picture.size)
    within.paste(255, box)
    return Surroundings(np.asarray(picture), np.asarray(within), box)
