"""The JPEG writer beside Pillow's own, which reads and writes the same bytes."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serve_app import jpeg

Pixels = NDArray[np.uint8]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)


def pillows(pixels: Pixels, **settings: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **settings)
    return file.getvalue()


@pytest.mark.parametrize(
    ("height", "width", "restart"),
    [
        (1024, 1024, 16),
        (1000, 1016, 21),
        (832, 1216, 18),
        (513, 1031, 17),
        (2048, 512, 32),
        (528, 1000, 17),
        (1500, 2048, 9),
    ],
)
@pytest.mark.parametrize("quality", [1, 95, 100])
def test_strips_joined_are_byte_for_byte_what_pillow_writes_with_restart_markers(
    height: int, width: int, restart: int, quality: int
) -> None:
    pixels = noise(height, width)
    embedded = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", "xmp": b"<x:xmpmeta/>"}
    ours = jpeg.encode(pixels, quality, **embedded)
    assert ours == pillows(pixels, quality=quality, restart_marker_rows=restart, **embedded)
    plain = Image.open(BytesIO(pillows(pixels, quality=quality)))
    assert np.array_equal(np.asarray(Image.open(BytesIO(ours))), np.asarray(plain)), "markers change no pixel"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (64, 64), (512, 512), (8, 65500)])
def test_what_is_too_small_or_flat_for_strips_is_written_in_one_piece(height: int, width: int) -> None:
    pixels = noise(height, width)
    assert jpeg.encode(pixels, 90) == pillows(pixels, quality=90)


def test_without_files_in_memory_it_writes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(600, 900)
    ours = jpeg.encode(pixels, 95)
    monkeypatch.delattr("os.memfd_create")
    assert jpeg.encode(pixels, 95) == ours
