"""Files of pictures from strangers become pixels, or a sentence that says why not."""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import TypeVar

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from serve_app.metadata import parameters_chunk

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What most pictures are; each further decoder is one more to attack."""
_ADVICE = "send a PNG, JPEG, WebP, GIF or BMP"
_DAMAGED = "is damaged or cut off"

# How other files begin.
_KINDS = {
    rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg": "is an SVG drawing",
    rb".{4}ftyp(heic|heix|heim|heis|hevc|mif1|msf1)": "is a HEIC picture",
    rb".{4}ftypavi[fs]": "is an AVIF picture",
    rb"II\*\0|MM\0\*": "is a TIFF picture",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "is a JPEG XL picture",
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF|BM": _DAMAGED,
    rb"%PDF": "is a PDF document",
    rb"\s*<": "is a web page",
}
_MOST_SCANS = 500
"""Progressive JPEGs have about ten. Each costs as much as a whole picture, and takes a few bytes."""
_SCAN = b"\xff\xda"

_WHITE, _BLACK = (255, 255, 255, 255), (0, 0, 0, 255)

Read = TypeVar("Read")


class UnreadablePicture(ValueError):
    """A file cannot be used as a picture; the message says why, without its subject."""


def picture_of(content: bytes, most_pixels: int) -> Pillow.Image:
    """Return the picture in a file in RGB, upright; what is transparent shows white. Raises UnreadablePicture."""
    return _decoded(content, most_pixels, partial(_flat, background=_WHITE)).convert("RGB")


def mask_of(content: bytes, most_pixels: int) -> Pillow.Image:
    """Return the mask in a file in greys (L), upright; what is transparent is black. Raises UnreadablePicture."""
    return _decoded(content, most_pixels, partial(_flat, background=_BLACK)).convert("L")


def hole_of(content: bytes, most_pixels: int) -> Pillow.Image:
    """Return a mask in greys (L) that is white where the picture in a file is transparent. Raises UnreadablePicture."""
    hole = _decoded(content, most_pixels, _hole)
    if hole.getextrema() == (0, 0):
        raise UnreadablePicture("is nowhere transparent; it must be transparent where to generate")
    return hole


def text_of(content: bytes, most_pixels: int) -> str:
    """Return the text that programs have put into a picture; empty if there is none. Raises UnreadablePicture."""
    return _decoded(content, most_pixels, parameters_chunk) or ""


def _decoded(content: bytes, most_pixels: int, read: Callable[[Pillow.Image], Read]) -> Read:
    """Return what `read` makes of the first picture in a file, upright."""
    if content.count(_SCAN) > _MOST_SCANS and content.startswith(b"\xff\xd8"):
        raise UnreadablePicture(_DAMAGED)
    try:
        image = Pillow.open(BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError:
        kind = _kind(content)
        raise UnreadablePicture(kind if kind == _DAMAGED else f"{kind}; {_ADVICE}") from None
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
        raise _too_large(most_pixels) from None
    except Exception:  # whatever a decoder raises for a file that was made to break it
        raise UnreadablePicture(_DAMAGED) from None
    if image.width * image.height > most_pixels:  # known before anything is decoded
        raise _too_large(most_pixels)
    try:
        image.load()
        return read(_upright(image))
    except Exception:  # as above
        raise UnreadablePicture(_DAMAGED) from None


def _flat(image: Pillow.Image, background: tuple[int, int, int, int]) -> Pillow.Image:
    """Return a picture of 8 bits without transparency."""
    if image.mode.startswith("I"):  # 16 bits; Pillow would cut them off at 255
        return Pillow.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    return Pillow.alpha_composite(Pillow.new("RGBA", image.size, background), image.convert("RGBA"))


def _hole(image: Pillow.Image) -> Pillow.Image:
    return ImageOps.invert(image.convert("RGBA").getchannel("A"))


def _upright(image: Pillow.Image) -> Pillow.Image:
    """Return a picture turned as its camera says; as it is where that cannot be read."""
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _kind(content: bytes) -> str:
    if not content:
        return "is empty"
    return next(
        (words for begins, words in _KINDS.items() if re.match(begins, content[:4096], re.DOTALL)),
        "is no picture that can be read",
    )


def _too_large(most_pixels: int) -> UnreadablePicture:
    return UnreadablePicture(f"has more than {most_pixels} pixels (limits.max_picture_pixels); make it smaller")
