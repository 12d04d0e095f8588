"""EXIF user comments: writes our own, reads those of other programs. See EXIF 2.32, section 4.6."""

import struct

from PIL import ExifTags, TiffTags
from PIL import Image as Pillow
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_UNICODE = b"UNICODE\0"
_CODES = (b"ASCII\0\0\0", b"JIS\0\0\0\0\0", _UNICODE, bytes(8))
"""A user comment should start with one of these; many programs omit it."""

_SIGNATURE = b"Exif\0\0"
_TIFF_HEADER = b"MM\0*\0\0\0\x08"
"""Big-endian. The first directory starts at offset 8; all offsets count from this header."""

_INCH = 2
_CENTERED = 1
_SRGB = 1


def exif_block(comment: str, width: int, height: int) -> bytes:
    """Return the EXIF of a picture: its comment, and the fields that the standard requires. Sizes in pixels."""
    details = ImageFileDirectory_v2(_TIFF_HEADER, group=ExifTags.IFD.Exif)
    binary: dict[int, bytes] = {
        ExifTags.Base.ExifVersion: b"0232",
        ExifTags.Base.ComponentsConfiguration: b"\1\2\3\0",  # Y, Cb, Cr
        ExifTags.Base.UserComment: _UNICODE + comment.encode("utf-16-be"),
        ExifTags.Base.FlashPixVersion: b"0100",
    }
    details.update(binary)
    details.tagtype.update(dict.fromkeys(binary, TiffTags.UNDEFINED))  # Pillow would write most of them as BYTE
    details[ExifTags.Base.ColorSpace] = _SRGB
    details[ExifTags.Base.ExifImageWidth] = width
    details[ExifTags.Base.ExifImageHeight] = height
    main = ImageFileDirectory_v2(_TIFF_HEADER)
    main.update(
        {
            ExifTags.Base.XResolution: 72.0,
            ExifTags.Base.YResolution: 72.0,
            ExifTags.Base.ResolutionUnit: _INCH,
            ExifTags.Base.YCbCrPositioning: _CENTERED,
            ExifTags.Base.ExifOffset: 0,
        }
    )
    start = len(_TIFF_HEADER)
    main[ExifTags.Base.ExifOffset] = end = start + len(main.tobytes(start))
    return _SIGNATURE + _TIFF_HEADER + main.tobytes(start) + details.tobytes(end)


def user_comment(image: Pillow.Image) -> str:
    """Return the user comment of an open picture, decoded; empty if it has none."""
    try:
        exif = image.getexif()
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    except (SyntaxError, ValueError, TypeError, OSError, struct.error):  # Pillow raises these on broken EXIF and XMP
        return ""
    if isinstance(comment, str):  # Pillow decodes the TIFF type ASCII as latin-1
        comment = comment.encode("latin-1", "replace")
    if not isinstance(comment, bytes):
        return ""
    code, text = (comment[:8], comment[8:]) if comment.startswith(_CODES) else (b"", comment)
    return text.decode(_encoding(code, text, exif.endian), "replace").strip("\ufeff\0 ")


def _encoding(code: bytes, text: bytes, endian: str | None) -> str:
    if code == _UNICODE:
        return _utf16(text, endian)
    if code.startswith(b"JIS"):
        return "iso2022_jp" if b"\x1b" in text else "shift_jis"
    return "utf-8"  # it includes ASCII, and programs write it under any of the codes


def _utf16(text: bytes, endian: str | None) -> str:
    """Guess the byte order of UTF-16 text. The standard does not fix it, and programs ignore their file's."""
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    evens, odds = text[::2], text[1::2]
    big, little = ((len(set(high)), -high.count(0)) for high in (evens, odds))
    if big == little:
        return "utf-16-le" if endian == "<" else "utf-16-be"
    return "utf-16-be" if big < little else "utf-16-le"  # letters of one script share their high byte
