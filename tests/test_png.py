import io

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from serve_app import png
from serve_app.imaging import Pixels

NOISE: Pixels = np.random.default_rng(0).integers(0, 256, (33, 17, 3), dtype=np.uint8)
LARGE: Pixels = np.random.default_rng(1).integers(0, 256, (1023, 1025, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "pixels",
    [
        NOISE,
        NOISE[:1],
        NOISE[:, :1],
        NOISE[:1, :1],
        NOISE.transpose(1, 0, 2),
        NOISE[::-1, ::-2],
        np.zeros((64, 64, 3), np.uint8),
        LARGE,
    ],
    ids=["noise", "a row", "a column", "a pixel", "transposed", "reversed", "black", "in strips"],
)
def test_pixels_come_back_untouched(pixels: Pixels) -> None:
    file = png.encode(pixels)
    Image.open(io.BytesIO(file)).verify()  # the check sums
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels)


def test_other_chunks_stand_before_the_picture() -> None:
    info = PngInfo()
    info.add_itxt("parameters", "苹果")
    file = png.encode(NOISE, [(kind, content) for kind, content, *_ in info.chunks])
    assert file.index(b"iTXt") < file.index(b"IDAT")
    with Image.open(io.BytesIO(file)) as image:
        assert image.info["parameters"] == "苹果"


def test_a_smooth_picture_gets_small() -> None:
    smooth = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 256, axis=1).repeat(3, axis=2)
    assert len(png.encode(smooth)) < smooth.nbytes / 20
