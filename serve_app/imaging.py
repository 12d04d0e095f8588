"""Pixels to files that say how they were made. No torch."""

import base64
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict

from serve_app import __version__, png
from serve_app.messages import Slot
from serve_app.schemas import GenerateRequest, ModelInfo, OutputFormat, SchedulerName, sheet_cells

Pixels = NDArray[np.uint8]
"""RGB, (height, width, 3)."""

# The names that popular UIs read in a picture's parameters.
_SAMPLERS: dict[SchedulerName, str] = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "ddim": "DDIM",
    "unipc": "UniPC",
}

# https://cv.iptc.org/newscodes/digitalsourcetype/: media made by a model trained on sampled content.
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:psdxl="urn:parallel-sdxl:1"'
    ' Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"'
    " psdxl:parameters={parameters}/></rdf:RDF></x:xmpmeta>"
    '<?xpacket end="w"?>'
)
_XMP_NAMESPACE = "urn:parallel-sdxl:1"
_XMP_PARAMETERS = f"{{{_XMP_NAMESPACE}}}parameters"
_NO_PARAMETERS = json.dumps({})
_SLOT_FIELDS = {field.name for field in fields(Slot)} & set(GenerateRequest.model_fields) - {"preview_steps"}
_MISSING_CELL = (128, 128, 128)
_JPEG_QUALITY = 95
_WEBP_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a picture of ours says of itself: the request that paints it and no other again, and what painted it."""

    request: GenerateRequest
    model: ModelInfo
    version: str


class _Written(BaseModel):
    """The JSON of `parameters_json`, whose other fields are those of a request."""

    model_config = ConfigDict(extra="allow")

    model: ModelInfo
    version: str


def encode_picture(pixels: Pixels, slot: Slot, model: ModelInfo) -> str:
    """Return a finished picture as a file in base64 text, with all that is needed to paint it again."""
    return _encode(pixels, slot.output_format, slot.output_compression, parameters_text(slot, model), parameters_json(slot, model))


def encode_preview(pixels: Pixels, quality: int) -> str:
    """Return a preview as a bare JPEG in base64 text."""
    return base64.b64encode(_saved(pixels, "JPEG", quality)).decode("ascii")


def contact_sheet(cells: Sequence[Pixels | None], width: int, height: int) -> Pixels:
    """Return all cells on one sheet: row-major, ceil(sqrt(n)) columns, no gaps, cells without a picture grey."""
    columns, rows = sheet_cells(len(cells))
    sheet = np.full((rows * height, columns * width, 3), _MISSING_CELL, dtype=np.uint8)
    for i, cell in enumerate(cells):
        if cell is not None:
            top, left = i // columns * height, i % columns * width
            sheet[top : top + height, left : left + width] = cell
    return sheet


def encode_sheet(pixels: Pixels, output_format: OutputFormat, quality: int | None) -> str:
    """Return a contact sheet as a file in base64 text; `quality` as in `Slot.output_compression`."""
    return _encode(pixels, output_format, quality, "", {})


def parameters_text(slot: Slot, model: ModelInfo) -> str:
    """Return the parameters in the form that popular UIs read from a PNG's `parameters` chunk."""
    lines = [slot.prompt]
    if slot.negative_prompt:
        lines.append(f"Negative prompt: {slot.negative_prompt}")
    lines.append(
        f"Steps: {slot.num_inference_steps}, Sampler: {_SAMPLERS[slot.scheduler]}, CFG scale: {slot.guidance_scale:.10g}, Seed: {slot.seed}, "
        f"Size: {slot.width}x{slot.height}, Model hash: {model.hash}, Model: {model.name}, Version: parallel-sdxl {__version__}"
    )
    return "\n".join(lines)


def parameters_json(slot: Slot, model: ModelInfo) -> dict[str, object]:
    """Return the parameters for programs: a request for this one picture, and what painted it."""
    return {
        "prompt": slot.prompt,
        "negative_prompt": slot.negative_prompt,
        "seed": slot.seed,
        "width": slot.width,
        "height": slot.height,
        "num_inference_steps": slot.num_inference_steps,
        "guidance_scale": slot.guidance_scale,
        "scheduler": slot.scheduler,
        "output_format": slot.output_format,
        "output_compression": slot.output_compression,
        "model": model.model_dump(),
        "version": __version__,
    }


def embedded_parameters(image: Pillow.Image) -> Embedded | None:
    """Return what `parameters_json` put into an open picture; None where there is nothing of the kind.

    Raises ValueError where it is there but is not what this version writes.
    """
    packet = image.info.get("xmp", b"")
    if not isinstance(packet, bytes) or _XMP_NAMESPACE.encode() not in packet:
        return None
    try:
        # No untrusted XML gets far: expat bounds the expansion of entities, and ElementTree fetches none.
        root = ElementTree.fromstring(packet.rstrip(b"\0 "))  # noqa: S314 - as above
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"its XMP packet is not XML: {error}") from None
    text = next((found for element in root.iter() if (found := element.get(_XMP_PARAMETERS))), _NO_PARAMETERS)
    if text == _NO_PARAMETERS:
        return None
    written = _Written.model_validate_json(text)
    request = written.model_extra or {}
    if "seed" not in request or not set(request) <= _SLOT_FIELDS:
        raise ValueError("it names no single picture")
    return Embedded(GenerateRequest.model_validate({**request, "num_images": 1}), written.model, written.version)


def parameters_chunk(image: Pillow.Image) -> str | None:
    """Return the text that popular UIs put into an open picture: a PNG's `parameters` chunk, else the EXIF user comment."""
    if text := image.info.get("parameters"):
        return str(text)
    try:
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    except (SyntaxError, ValueError, TypeError, OSError, struct.error):  # what Pillow raises at broken EXIF and XMP
        return None
    return _comment_text(comment) or None


def _encode(pixels: Pixels, output_format: OutputFormat, quality: int | None, text: str, parameters: dict[str, object]) -> str:
    xmp = _XMP.format(parameters=quoteattr(json.dumps(parameters)))
    match output_format:
        case "png":
            info = PngInfo()
            if text:
                info.add_itxt("parameters", text)
            info.add_itxt("XML:com.adobe.xmp", xmp)
            file = png.encode(pixels, [(kind, content) for kind, content, *_ in info.chunks])
        case "jpeg":
            file = _saved(pixels, "JPEG", _JPEG_QUALITY if quality is None else quality, exif=_exif(text), xmp=xmp.encode())
        case "webp":
            file = _saved(pixels, "WEBP", _WEBP_QUALITY if quality is None else quality, exif=_exif(text), xmp=xmp.encode())
    return base64.b64encode(file).decode("ascii")


def _saved(pixels: Pixels, file_format: str, quality: int, **embedded: Any) -> bytes:
    file = BytesIO()
    Pillow.fromarray(pixels).save(file, file_format, quality=quality, **embedded)
    return file.getvalue()


def _exif(text: str) -> Pillow.Exif:
    exif = Pillow.Exif()
    if not text:
        return exif
    # EXIF 2.3, 4.6.5: a user comment starts with its character code, here UTF-16.
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif


def _comment_text(comment: object) -> str:
    """Return the text of an EXIF user comment that says its character code."""
    if not isinstance(comment, bytes):
        return ""
    code, text = comment[:8], comment[8:]
    return text.decode("utf-16-be" if code == b"UNICODE\0" else "ascii", "replace")
