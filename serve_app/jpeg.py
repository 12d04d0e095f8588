"""A fast JPEG writer for finished pictures: Pillow's, for strips of rows side by side.

Why not Pillow alone: it keeps Python's lock while it encodes into memory, which holds up the denoising loop, and uses
one core. Given a file it does without the lock. Restart markers make strips independent of each other: each begins anew
to predict its blocks' means. The result is, byte for byte, what Pillow writes in one piece with such markers. See ITU-T
T.81, B.1 and B.2.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

_BLOCK_ROWS = 16
"""Rows of pixels that are coded together: colours have half the resolution."""
_STRIP_PIXELS = 1 << 18
"""What smaller strips save, more threads cost. Larger pictures have more strips, not larger ones: after 65,535
blocks Pillow would put a marker of its own."""
_THREADS = 3
"""Beside the caller's, which encodes the first strip meanwhile."""
_FRAME, _SCAN = 0xC0, 0xDA
_RESTART = 0xD0
_END = b"\xff\xd9"


def encode(pixels: NDArray[np.uint8], quality: int, **embedded: bytes) -> bytes:
    """Return RGB pixels, (height, width, 3), as a file; `embedded` are Pillow's `exif` and `xmp`."""
    height, width, _ = pixels.shape
    strips = height * width // _STRIP_PIXELS
    blocks = -(-height // _BLOCK_ROWS)
    if strips < 2 or blocks < strips:
        return _saved(pixels, quality=quality, **embedded)
    each = -(-blocks // strips)
    parts = [pixels[top : top + each * _BLOCK_ROWS] for top in range(0, height, each * _BLOCK_ROWS)]
    settings = {"quality": quality, "restart_marker_rows": each}
    with ThreadPoolExecutor(_THREADS) as threads:
        others = threads.map(lambda part: _saved(part, **settings), parts[1:])
        return _joined([_saved(parts[0], **settings, **embedded), *others], height)


def _saved(pixels: NDArray[np.uint8], **settings: Any) -> bytes:
    with _file() as file:
        Pillow.fromarray(pixels).save(file, "JPEG", **settings)
        file.seek(0)
        return file.read()


def _file() -> BinaryIO:
    """Return a file in memory, with a descriptor where the system has such."""
    return open(os.memfd_create("picture"), "w+b", buffering=0) if hasattr(os, "memfd_create") else BytesIO()


def _joined(strips: list[bytes], height: int) -> bytes:
    """Return strips of one picture as a file with the header of the first, and with markers between their scans."""
    header = bytearray(strips[0][: _scan(strips[0])])
    frame = next(start for marker, start in _segments(strips[0]) if marker == _FRAME)
    header[frame + 5 : frame + 7] = height.to_bytes(2, "big")
    scans = [strip[_scan(strip) : -len(_END)] for strip in strips]
    between = (bytes([0xFF, _RESTART + number % 8]) for number in range(len(scans)))
    return bytes(header) + b"".join(part for pair in zip(scans, between, strict=True) for part in pair)[:-2] + _END


def _scan(file: bytes) -> int:
    """Return where a file's coded pixels begin: behind the segment that announces them."""
    return next(start + 2 + _length(file, start) for marker, start in _segments(file) if marker == _SCAN)


def _segments(file: bytes) -> Iterator[tuple[int, int]]:
    """Yield the markers of a file's segments up to its pixels, and where they begin."""
    start = 2
    while True:
        yield file[start + 1], start
        start += 2 + _length(file, start)


def _length(file: bytes, start: int) -> int:
    return int.from_bytes(file[start + 2 : start + 4], "big")
