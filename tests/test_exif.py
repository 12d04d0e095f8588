"""User comments in all the ways that programs write them."""

from io import BytesIO

import pytest
from PIL import ExifTags, Image

from serve_app.exif import exif_block, user_comment

TEXT = "Käse für 一, Steps: 4"
UNICODE, ASCII, JIS, NO_CODE = b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8)


def with_comment(comment: bytes | str, endian: str = ">") -> Image.Image:
    """Return a picture as another program would write it."""
    exif = Image.Exif()
    exif.endian = endian
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    return Image.open(file)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (UNICODE + TEXT.encode("utf-16-be"), TEXT),
        (UNICODE + TEXT.encode("utf-16-le"), TEXT),
        (UNICODE + b"\xfe\xff" + TEXT.encode("utf-16-be"), TEXT),
        (UNICODE + b"\xff\xfe" + TEXT.encode("utf-16-le"), TEXT),
        (UNICODE + "一三上下不世中".encode("utf-16-be"), "一三上下不世中"),
        (UNICODE + "一三上下不世中".encode("utf-16-le"), "一三上下不世中"),
        (UNICODE + (TEXT + "\0\0").encode("utf-16-le"), TEXT),
        (NO_CODE + TEXT.encode(), TEXT),
        (ASCII + TEXT.encode(), TEXT),
        (ASCII + b"a cat\0", "a cat"),
        (TEXT.encode(), TEXT),
        ("a cat", "a cat"),
        (JIS + "赤い林檎".encode("iso2022_jp"), "赤い林檎"),
        (JIS + "赤い林檎".encode("shift_jis"), "赤い林檎"),
        (ASCII + b"not UTF-8: \xe4", "not UTF-8: \ufffd"),
        (UNICODE, ""),
        (NO_CODE, ""),
        (b"a", "a"),
    ],
)
def test_a_comment_is_read_whoever_wrote_it(comment: bytes | str, endian: str, text: str) -> None:
    assert user_comment(with_comment(comment, endian)) == text


@pytest.mark.parametrize(("endian", "encoding"), [("<", "utf-16-le"), (">", "utf-16-be")])
def test_where_the_text_does_not_tell_a_mark_does_or_the_files_byte_order(endian: str, encoding: str) -> None:
    assert user_comment(with_comment(UNICODE + "猫".encode(encoding), endian)) == "猫"
    for marked in ("utf-16-le", "utf-16-be"):
        assert user_comment(with_comment(UNICODE + "\ufeff猫".encode(marked), endian)) == "猫"


def test_ours_is_read_too() -> None:
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "WEBP", exif=exif_block(TEXT, 8, 8))
    assert user_comment(Image.open(file)) == TEXT
    assert user_comment(Image.new("RGB", (8, 8))) == ""
