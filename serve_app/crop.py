"""The part of a picture around its mask, cut out and put back as diffusers' `VaeImageProcessor` does it.

Written again because diffusers needs torch, which the ingress does not have; a test compares the two.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels; the last two are just outside."""

_SCALING = Pillow.Resampling.LANCZOS


def region_of(mask: NDArray[np.uint8], width: int, height: int, padding: int) -> Box:
    """Return the region with all that a mask marks, padded, and widened to the shape of `width` x `height`.

    The mask must mark something. At the borders the region may have another shape.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    whole_height, whole_width = mask.shape
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, whole_width)
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, whole_height)
    shape = width / height
    if (right - left) / (bottom - top) > shape:
        top, bottom = _widened(top, bottom, (right - left) / shape, whole_height)
    else:
        left, right = _widened(left, right, (bottom - top) * shape, whole_width)
    return left, top, right, bottom


def _widened(low: int, high: int, wanted: float, limit: int) -> tuple[int, int]:
    """Return an interval widened to a length as far as possible; it is moved to stay within 0 and `limit`."""
    more = int(wanted - (high - low))
    low, high = low - more // 2, high + more - more // 2
    if high >= limit:
        low, high = low - (high - limit), limit
    if low < 0:
        low, high = 0, high - low
    return low, min(high, limit)


def filled_to(picture: Pillow.Image, width: int, height: int) -> Pillow.Image:
    """Return a picture scaled to fit into a size, with its own borders stretched over the rest."""
    if width / height < picture.width / picture.height:
        inner = width, picture.height * width // picture.width
    else:
        inner = picture.width * height // picture.height, height
    scaled, filled = _centred(picture, inner, width, height)
    left, top = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    if top > 0:
        filled.paste(scaled.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        last = scaled.resize((width, top), box=(0, scaled.height, width, scaled.height))
        filled.paste(last, (0, top + inner[1]))
    if left > 0:
        filled.paste(scaled.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        last = scaled.resize((left, height), box=(scaled.width, 0, scaled.width, height))
        filled.paste(last, (left + inner[0], 0))
    return filled


def cropped_to(picture: Pillow.Image, width: int, height: int) -> Pillow.Image:
    """Return a picture scaled to cover a size, without what is outside."""
    if width / height > picture.width / picture.height:
        inner = width, picture.height * width // picture.width
    else:
        inner = picture.width * height // picture.height, height
    return _centred(picture, inner, width, height)[1]


def _centred(
    picture: Pillow.Image, inner: tuple[int, int], width: int, height: int
) -> tuple[Pillow.Image, Pillow.Image]:
    """Return a picture scaled to `inner`, and that in the middle of a size."""
    scaled = picture.resize(inner, _SCALING)
    whole = Pillow.new(picture.mode, (width, height))
    whole.paste(scaled, (width // 2 - inner[0] // 2, height // 2 - inner[1] // 2))
    return scaled, whole
