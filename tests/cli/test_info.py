from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from serve_app import __version__
from tests.cli.command import run


def test_a_picture_of_ours(picture: Path) -> None:
    done = run("info", picture)
    assert done.returncode == 0, done.stderr
    told = [(line[:21].strip(), line[21:]) for line in done.stdout.splitlines()]
    assert told[0] == ("prompt", "a red apple")
    assert ("seed", "7") in told
    assert told[-6:] == [
        ("model", "sdxl"),
        ("model revision", "abc123"),
        ("model hash", "0123456789"),
        ("prediction type", "v_prediction"),
        ("zero SNR", "True"),
        ("painted by", f"parallel-sdxl {__version__}"),
    ]


def test_a_picture_of_another_ui(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("parameters", "a cat\nNegative prompt: dull\nSteps: 20, \x1b]0;owned\x07Seed: 1")
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=text)
    done = run("info", tmp_path / "theirs.png")
    assert (done.returncode, done.stdout) == (
        0,
        "a cat\nNegative prompt: dull\nSteps: 20, \ufffd]0;owned\ufffdSeed: 1\n",
    )
    assert "holds no parameters" in run("reproduce", tmp_path / "theirs.png").stderr


@pytest.mark.parametrize("command", ["info", "reproduce"])
@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_a_file_that_is_no_picture(tmp_path: Path, command: str, content: bytes) -> None:
    (tmp_path / "file.png").write_bytes(content)
    done = run(command, tmp_path / "file.png")
    assert done.returncode == 2
    assert "cannot be read as a picture" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["info", "reproduce"])
def test_a_picture_without_parameters(tmp_path: Path, command: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.webp")
    done = run(command, tmp_path / "plain.webp")
    assert (done.returncode, done.stdout) == (2, "")
    assert "holds no parameters" in done.stderr


def test_parameters_of_another_time_are_told_from_none(tmp_path: Path) -> None:
    packet = '<a xmlns:psdxl="urn:parallel-sdxl:1" psdxl:parameters="{&quot;prompt&quot;: 5}"/>'
    Image.new("RGB", (8, 8)).save(tmp_path / "old.webp", xmp=packet.encode())
    done = run("info", tmp_path / "old.webp")
    assert done.returncode == 2
    assert "are not what this version writes" in done.stderr


def xmp(parameters: str) -> bytes:
    return f'<a xmlns:psdxl="urn:parallel-sdxl:1" psdxl:parameters={quoteattr(parameters)}/>'.encode()


MODEL = '"model": {"name": "sdxl", "revision": null, "hash": "0123456789"}, "version": "0"'


@pytest.mark.parametrize("command", ["info", "reproduce"])
@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (xmp('{"prompt": "a", ' + MODEL + "}"), "it names no single picture"),
        (xmp('{"prompt": "a", "seed": 1, "grid": true, ' + MODEL + "}"), "it names no single picture"),
        (xmp('{"prompt": 5, "seed": 1, ' + MODEL + "}"), "prompt: Input should be a valid string"),
        (b'<?xml version="1.0" encoding="foo"?>' + xmp("{}"), "its XMP packet is not XML"),
        (b"<a><b", "holds no parameters"),
    ],
)
def test_parameters_that_cannot_be_used(tmp_path: Path, command: str, packet: bytes, says: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "other.webp", xmp=packet)
    done = run(command, tmp_path / "other.webp")
    assert done.returncode == 2
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_chunks_and_exif_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("xmp", "no packet")
    Image.new("RGB", (8, 8)).save(tmp_path / "text.png", pnginfo=text)
    Image.new("RGB", (8, 8)).save(tmp_path / "exif.webp", exif=b"Exif\0\0garbage")
    for name in ("text.png", "exif.webp"):
        done = run("info", tmp_path / name)
        assert (done.returncode, done.stdout) == (2, "")
        assert "holds no parameters" in done.stderr
        assert "Traceback" not in done.stderr
