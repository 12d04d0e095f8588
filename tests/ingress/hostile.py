"""Files of pictures as they come: odd ones that must be read right, and broken or hostile ones that must be refused."""

import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image as Pillow

Content = Callable[[], bytes]
MOST_PIXELS = 64 * 64
RED = (200, 30, 40)


def saved(image: Pillow.Image, file_format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def plain(mode: str = "RGB", color: Any = RED, size: tuple[int, int] = (16, 8)) -> Pillow.Image:
    return Pillow.new(mode, size, color)


def half() -> Pillow.Image:
    """Red above, black below."""
    image = plain()
    image.paste((0, 0, 0), (0, 4, 16, 8))
    return image


def turned(orientation: int) -> bytes:
    """A camera's file of `half`, stored on its side."""
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    return saved(half().transpose(Pillow.Transpose.ROTATE_90), "PNG", exif=exif)


def palette(**options: Any) -> bytes:
    return saved(plain().quantize(4), "PNG", **options)


def animated(file_format: str) -> bytes:
    others = [plain(color=(0, 0, 255)), plain(color=(0, 255, 0))]
    return saved(plain(), file_format, save_all=True, append_images=others)


def sixteen_bits() -> bytes:
    return saved(Pillow.fromarray(np.full((8, 16), 200 * 257, np.uint16)), "PNG")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def png(width: int, height: int, rows: bytes = b"", *before: bytes, bits: int = 8, kind: int = 2) -> bytes:
    """A PNG with such a header, whatever it holds."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def gif_bomb() -> bytes:
    small = bytearray(saved(plain("P", 1), "GIF"))
    small[6:10] = struct.pack("<HH", 65535, 65535)
    return bytes(small)


def webp_bomb() -> bytes:
    return saved(Pillow.new("L", (4096, 4096)).convert("RGB"), "WEBP", lossless=True)


def jpeg_bomb() -> bytes:
    small = bytearray(saved(plain(), "JPEG"))
    frame = small.index(b"\xff\xc0")
    small[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    return bytes(small)


def bmp_bomb() -> bytes:
    small = bytearray(saved(plain(), "BMP"))
    small[18:26] = struct.pack("<ii", 2**20, 2**20)
    return bytes(small)


def endless_scans() -> bytes:
    """Each of its scans costs as much as a whole picture."""
    jpeg = saved(plain(), "JPEG", progressive=True)
    scan = jpeg.rindex(b"\xff\xda")
    return jpeg[:scan] + 600 * jpeg[scan:-2] + jpeg[-2:]


def broken_exif() -> bytes:
    return saved(plain(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + 40 * b"\x01")


def cmyk() -> bytes:
    return saved(plain().convert("CMYK"), "JPEG", quality=95)


READ: Mapping[str, tuple[Content, Any]] = {
    "PNG": (lambda: saved(plain(), "PNG"), RED),
    "JPEG": (lambda: saved(plain(), "JPEG", quality=95), RED),
    "WebP": (lambda: saved(plain(), "WEBP", lossless=True), RED),
    "BMP": (lambda: saved(plain(), "BMP"), RED),
    "greys": (lambda: saved(plain("L", 200), "PNG"), (200, 200, 200)),
    "black and white": (lambda: saved(plain("1", 1), "PNG"), (255, 255, 255)),
    "16 bits of grey": (sixteen_bits, (200, 200, 200)),
    "16 bits a colour": (
        lambda: png(16, 8, 8 * (b"\0" + 16 * struct.pack(">3H", *(257 * c for c in RED))), bits=16),
        RED,
    ),
    "palette": (palette, RED),
    "palette with a transparent colour": (partial(palette, transparency=0), (255, 255, 255)),
    "CMYK": (cmyk, RED),
    "transparent": (lambda: saved(plain("RGBA", (*RED, 0)), "PNG"), (255, 255, 255)),
    "half transparent": (lambda: saved(plain("RGBA", (0, 0, 0, 128)), "PNG"), (127, 127, 127)),
    "grey and transparent": (lambda: saved(plain("LA", (9, 0)), "PNG"), (255, 255, 255)),
    "animated GIF": (partial(animated, "GIF"), RED),
    "animated WebP": (
        lambda: saved(plain(), "WEBP", save_all=True, append_images=[plain("RGB", 0)], lossless=True),
        RED,
    ),
    "animated PNG": (partial(animated, "PNG"), RED),
    "one pixel": (lambda: saved(plain(size=(1, 1)), "PNG"), RED),
    "broken EXIF": (broken_exif, RED),
    "a ZIP behind a PNG": (lambda: saved(plain(), "PNG") + b"PK\x03\x04" + bytes(99), RED),
    "a script behind a GIF": (lambda: saved(plain(), "GIF") + b"<script>alert(1)</script>", RED),
}
"""Files and the colour of what they show."""

DAMAGED, TOO_LARGE, UNKNOWN = "is damaged or cut off", "has more than 4096 pixels", "is no picture that can be read"

REFUSED: Mapping[str, tuple[Content, str]] = {
    "nothing": (lambda: b"", "is empty"),
    "noise": (lambda: bytes(range(1, 256)), UNKNOWN),
    "a text": (lambda: b"a red apple", UNKNOWN),
    "a web page": (lambda: b"<!DOCTYPE html><html></html>", "is a web page"),
    "SVG": (lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG drawing"),
    "SVG without a prologue": (lambda: b" <svg onload='x()'/>", "is an SVG drawing"),
    "HEIC": (lambda: b"\0\0\0\x18ftypheic" + bytes(99), "is a HEIC picture"),
    "AVIF": (lambda: b"\0\0\0\x18ftypavif" + bytes(99), "is an AVIF picture"),
    "TIFF": (lambda: saved(plain(), "TIFF"), "is a TIFF picture"),
    "PDF": (lambda: b"%PDF-1.7\n" + saved(plain(), "PNG"), "is a PDF document"),
    "EPS, which runs a program": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNKNOWN),
    "a PNG's beginning": (lambda: saved(half(), "PNG")[:40], DAMAGED),
    "a PNG without its end": (lambda: png(16, 8, b"\0" * 60), DAMAGED),
    "half a JPEG": (lambda: saved(plain(size=(64, 64)), "JPEG")[:-300], DAMAGED),
    "half a WebP": (lambda: saved(half(), "WEBP")[:-8], DAMAGED),
    "half a GIF": (lambda: saved(half(), "GIF")[:-12], DAMAGED),
    "no pixels": (lambda: png(0, 8), DAMAGED),
    "a PNG that is too large": (lambda: saved(plain(size=(65, 64)), "PNG"), TOO_LARGE),
    "a PNG bomb": (lambda: png(30_000, 30_000, bytes(2**20)), TOO_LARGE),
    "a PNG of more pixels than there are numbers": (lambda: png(2**31 - 1, 2**31 - 1), TOO_LARGE),
    "a GIF bomb": (gif_bomb, TOO_LARGE),
    "a WebP bomb": (webp_bomb, TOO_LARGE),
    "a JPEG bomb": (jpeg_bomb, TOO_LARGE),
    "a BMP bomb": (bmp_bomb, TOO_LARGE),
    "a text bomb": (
        lambda: png(16, 8, b"", chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**27)))),
        DAMAGED,
    ),
    "a profile bomb": (
        lambda: png(16, 8, b"", chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**27)))),
        DAMAGED,
    ),
    "endless scans": (endless_scans, DAMAGED),
    "a wrong checksum": (lambda: saved(half(), "PNG").replace(b"IDAT", b"IDAU"), DAMAGED),
}
"""Files, and what is said of them."""
