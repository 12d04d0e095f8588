"""Encodes pixels as image files. No torch."""

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from serve_app import jpeg, png
from serve_app.exif import exif_block
from serve_app.messages import Slot
from serve_app.metadata import parameters_json, parameters_text, xmp_packet
from serve_app.recipe import OutputFormat
from serve_app.schemas import ModelInfo, sheet_cells

Pixels = NDArray[np.uint8]
"""RGB, (height, width, 3)."""

_MISSING_CELL = (128, 128, 128)
_JPEG_QUALITY = 95
_WEBP_QUALITY = 90


def encode_picture(pixels: Pixels, slot: Slot, model: ModelInfo) -> str:
    """Return a finished picture as a base64 file that holds all parameters needed to generate it again."""
    return _encode(
        pixels,
        slot.output.output_format,
        slot.output.output_compression,
        parameters_text(slot, model),
        parameters_json(slot, model),
        composite=slot.recipe.init_image is not None,
    )


def encode_preview(pixels: Pixels, quality: int) -> str:
    """Return a preview as a base64 JPEG without metadata."""
    return base64.b64encode(jpeg.encode(pixels, quality)).decode("ascii")


def contact_sheet(cells: Sequence[Pixels | None], width: int, height: int) -> Pixels:
    """Return all cells on one sheet: row-major, ceil(sqrt(n)) columns, no gaps, missing pictures grey."""
    columns, rows = sheet_cells(len(cells))
    sheet = np.full((rows * height, columns * width, 3), _MISSING_CELL, dtype=np.uint8)
    for i, cell in enumerate(cells):
        if cell is not None:
            top, left = i // columns * height, i % columns * width
            sheet[top : top + height, left : left + width] = cell
    return sheet


def encode_bare(pixels: Pixels, output_format: OutputFormat, quality: int | None, *, composite: bool = False) -> str:
    """Return a base64 file that says of itself only that a model made it; `quality` is `Output.output_compression`.

    `composite`: the model went on from a picture that was given.
    """
    return _encode(pixels, output_format, quality, "", {}, composite=composite)


def _encode(
    pixels: Pixels,
    output_format: OutputFormat,
    quality: int | None,
    text: str,
    parameters: dict[str, object],
    *,
    composite: bool,
) -> str:
    xmp = xmp_packet(parameters, composite=composite)
    height, width, _ = pixels.shape
    exif = exif_block(text, width, height) if text else b""
    match output_format:
        case "png":
            info = PngInfo()
            if text:
                info.add_itxt("parameters", text)
            info.add_itxt("XML:com.adobe.xmp", xmp)
            file = png.encode(pixels, [(kind, content) for kind, content, *_ in info.chunks])
        case "jpeg":
            file = jpeg.encode(pixels, _JPEG_QUALITY if quality is None else quality, exif=exif, xmp=xmp.encode())
        case "webp":
            webp = BytesIO()  # Pillow encodes it without Python's lock
            settings = {"quality": _WEBP_QUALITY if quality is None else quality, "exif": exif, "xmp": xmp.encode()}
            Pillow.fromarray(pixels).save(webp, "WEBP", **settings)
            file = webp.getvalue()
    return base64.b64encode(file).decode("ascii")
