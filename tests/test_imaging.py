"""Pixels become files that hold them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from serve_app.imaging import Pixels, contact_sheet, encode_picture, encode_preview
from serve_app.recipe import OutputFormat
from serve_app.schemas import ModelInfo
from tests.conftest import make_slot

MODEL = ModelInfo(name="sdxl", revision="abc123", hash="0123456789")
PIXELS: Pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize(("output_format", "usual"), [("jpeg", 95), ("webp", 90)])
def test_the_quality_is_as_asked_for(output_format: OutputFormat, usual: int) -> None:
    sizes = [
        len(encode_picture(PIXELS, make_slot(output_format=output_format, output_compression=q), MODEL))
        for q in (0, 1, 50, usual, None, 100)
    ]
    assert sizes[0] <= sizes[1] < sizes[2] < sizes[3] < sizes[5]
    assert abs(sizes[3] - sizes[4]) < 10, "where nothing is asked for; the file also holds what was"


@pytest.mark.parametrize("output_compression", [None, 1])
def test_a_png_holds_the_pixels_untouched_whatever_was_asked_for(output_compression: int | None) -> None:
    file = encode_picture(PIXELS, make_slot(output_compression=output_compression), MODEL)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))), PIXELS)


def test_a_preview_is_a_bare_jpeg() -> None:
    image = Image.open(io.BytesIO(base64.b64decode(encode_preview(PIXELS, 80))))
    assert (image.format, image.size) == ("JPEG", (48, 64))


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (4, (2, 2)), (5, (2, 3)), (10, (3, 4)), (16, (4, 4))]
)
def test_sheets_are_row_major_with_as_many_columns_as_the_root_of_n(count: int, shape: tuple[int, int]) -> None:
    cells = [np.full((4, 6, 3), i, dtype=np.uint8) for i in range(count)]
    sheet = contact_sheet(cells, width=6, height=4)
    assert sheet.shape == (4 * shape[0], 6 * shape[1], 3)
    for i, cell in enumerate(cells):
        row, column = divmod(i, shape[1])
        assert np.array_equal(sheet[4 * row : 4 * row + 4, 6 * column : 6 * column + 6], cell)
    assert (sheet.reshape(-1, 3)[-1] == (count - 1 if count == shape[0] * shape[1] else 128)).all()
