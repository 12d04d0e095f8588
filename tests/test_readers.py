"""Our files, read by other programs."""

import base64
import json
import re
import subprocess
from collections.abc import Callable
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import piexif
import piexif.helper
import pytest
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.data import Sampler
from sd_parsers.extractors import _jpeg_usercomment
from sd_prompt_reader.image_data_reader import ImageDataReader

from serve_app.exif import user_comment
from serve_app.imaging import Pixels, encode_bare, encode_picture, encode_preview
from serve_app.metadata import embedded_parameters, parameters_text
from serve_app.recipe import OutputFormat
from serve_app.schemas import ModelInfo
from tests.conftest import make_slot
from tests.programs import program

FORMATS: list[OutputFormat] = ["png", "jpeg", "webp"]
PIXELS: Pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
SEED = 4294967295

# Prompts, and what readers return if it cannot be the same text.
PROMPTS: dict[str, tuple[str, str | None]] = {
    "quotes": ("""say "hi", it's \\"\\ \\'""", None),
    "lines": ("a cat\n\non a mat: red, blue", None),
    "parameters": (
        "a cat\nSteps: 1, Sampler: DDIM, CFG scale: 1, Seed: 99, Size: 8x8, Model: x",
        "a cat\nSteps : 1, Sampler: DDIM, CFG scale: 1, Seed: 99, Size: 8x8, Model: x",
    ),
    "parameters alone": ("Steps: 1, Seed: 99", "Steps : 1, Seed: 99"),
    "negative prompt": (
        'a sign "Negative prompt: no"\nNegative prompt: a dog',
        'a sign "Negative prompt : no"\nNegative prompt : a dog',
    ),
    "controls": ("nul\0 esc\x1b del\x7f csi\x9b end", "nul\ufffd esc\ufffd del\ufffd csi\ufffd end"),
    "no characters": ("\ufffe\uffff\ufeffa cat", "\ufffd\ufffd\ufffda cat"),
    "carriage returns": ("a\r\nb\rSteps: 1, Seed: 99", "a\nb\nSteps : 1, Seed: 99"),
    "emoji": ("🍎 👩‍👩‍👧 ✈\ufe0f", None),
    "right to left": ("\u202eشجرة\u202c red", None),
    "ideographs": ("一三上下不世中", None),
    "markup": ("""--> ]]> <![CDATA[ <a b='c'> & &amp; {0} %s ?> <?xpacket end="w"?>""", None),
    "longest": ("🍎" * 1999 + '"', None),
}
MODELS = [
    "sdxl",
    "my, model: v1",
    "weird, Seed: 99",
    "two\nSteps: 1, Seed: 99, Model: x",
    '"quoted"',
    'an "inch',
    " padded ",
    "C:\\models\\sdxl, v1",
    'Hashes: {"model": "x"}',
    "stabilityai/stable-diffusion-xl-base-1.0",
    "模型，一: 🍎",
    "nul\0 \u2028 \x85",
]


def model(name: str = "sdxl") -> ModelInfo:
    return ModelInfo(name=name, revision=None, hash="0123456789")


class Written:
    """A file of ours, and what was to be written into it."""

    def __init__(
        self,
        path: Path,
        output_format: OutputFormat,
        prompt: str,
        negative_prompt: str = "",
        name: str = "sdxl",
    ) -> None:
        asked = {"prompt": prompt, "negative_prompt": negative_prompt, "output_format": output_format}
        slot = make_slot(**asked, seed=SEED, width=48, height=64)
        self.path = path
        self.prompt = prompt
        self.negative_prompt = negative_prompt
        self.text = parameters_text(slot, model(name))
        path.write_bytes(base64.b64decode(encode_picture(PIXELS, slot, model(name))))


Exiftool = Callable[..., bytes]
Files = dict[tuple[str, str], tuple[Written, Written]]
"""By the name of the prompt and the format; one with the prompt alone, and one with it as the negative prompt too."""


def opened(path: Path) -> Image.Image:
    return Image.open(BytesIO(path.read_bytes()))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Pictures for every hostile prompt in every format."""
    folder = tmp_path_factory.mktemp("pictures")
    return {
        (name, f): (Written(folder / f"{i}.{f}", f, prompt), Written(folder / f"{i}-both.{f}", f, prompt, prompt))
        for i, (name, (prompt, _)) in enumerate(PROMPTS.items())
        for f in FORMATS
    }


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What else we write: a grid in every format, a JPEG in four strips, and a preview."""
    folder = tmp_path_factory.mktemp("others")
    contents = {f"grid.{f}": encode_bare(PIXELS, f, None) for f in FORMATS}
    contents["strips.jpeg"] = encode_bare(np.tile(PIXELS, (16, 16, 1)), "jpeg", None)
    contents["preview.jpeg"] = encode_preview(PIXELS, 80)
    for name, content in contents.items():
        (folder / name).write_bytes(base64.b64decode(content))
    return [folder / name for name in contents]


@pytest.fixture(scope="module")
def exiftool() -> Exiftool:
    def run(paths: list[Path], *options: str) -> bytes:
        command = [program("libimage-exiftool-perl", "exiftool"), *options, *map(str, paths)]
        return subprocess.run(command, capture_output=True, check=True).stdout

    return run


def every_prompt_in_every_format(test: Any) -> Any:
    return pytest.mark.parametrize("output_format", FORMATS)(pytest.mark.parametrize("name", PROMPTS)(test))


def test_exiftool_finds_nothing_wrong_and_all_of_the_text(files: Files, others: list[Path], exiftool: Exiftool) -> None:
    options = ("-json", "-G1", "-a", "-validate", "-warning", "-error", "-UserComment", "-Parameters")
    pictures = [*chain.from_iterable(files.values())]
    answer = exiftool([*others, *(file.path for file in pictures)], *options)
    found = {each["SourceFile"]: each for each in json.loads(answer)}
    assert len(found) == len(pictures) + len(others)
    assert {path: each for path, each in found.items() if each["ExifTool:Validate"] != "OK"} == {}
    for file in pictures:
        told = found[str(file.path)]
        assert json.loads(told["XMP-psdxl:Parameters"])["prompt"] == file.prompt
        assert told["PNG:Parameters" if file.path.suffix == ".png" else "ExifIFD:UserComment"] == file.text


def test_pngcheck_finds_nothing_wrong(files: Files, others: list[Path]) -> None:
    written = [*others, *(file.path for file in chain.from_iterable(files.values()))]
    pictures = [path for path in written if path.suffix == ".png"]
    done = subprocess.run([program("pngcheck", "pngcheck"), "-v", *map(str, pictures)], capture_output=True, text=True)
    assert (done.returncode, re.findall("warning|error(?!s)", done.stdout, re.IGNORECASE)) == (0, []), done.stdout


@every_prompt_in_every_format
def test_an_xml_parser_reads_the_packet(files: Files, name: str, output_format: str) -> None:
    file, _ = files[name, output_format]
    packet = minidom.parseString(opened(file.path).info["xmp"])  # noqa: S318 - our own
    (told,) = packet.getElementsByTagNameNS("http://www.w3.org/1999/02/22-rdf-syntax-ns#", "Description")
    assert json.loads(told.getAttributeNS("urn:parallel-sdxl:1", "parameters"))["prompt"] == file.prompt
    embedded = embedded_parameters(opened(file.path))
    assert embedded is not None
    assert embedded.request.prompt == file.prompt


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
@pytest.mark.parametrize("name", PROMPTS)
def test_piexif_reads_the_comment(files: Files, name: str, output_format: str) -> None:
    for file in files[name, output_format]:
        exif = piexif.load(str(file.path))["Exif"]
        assert piexif.helper.UserComment.load(exif[piexif.ExifIFD.UserComment]) == file.text
        assert user_comment(opened(file.path)) == file.text
        assert (exif[piexif.ExifIFD.PixelXDimension], exif[piexif.ExifIFD.PixelYDimension]) == (48, 64)


@every_prompt_in_every_format
def test_sd_prompt_reader_takes_each_part_for_what_it_is(files: Files, name: str, output_format: str) -> None:
    prompt, as_taken = PROMPTS[name]
    for file in files[name, output_format]:
        reader = ImageDataReader(str(file.path))
        assert reader.status.name == "READ_SUCCESS"
        assert reader.positive == (as_taken or prompt)
        assert reader.negative == ((as_taken or prompt) if file.negative_prompt else "")
        taken = {name: reader.parameter[name] for name in ("model", "sampler", "seed", "steps", "size")}
        assert taken == {"model": "sdxl", "sampler": "Euler", "seed": str(SEED), "steps": "4", "size": "48x64"}


@every_prompt_in_every_format
def test_sd_parsers_takes_each_part_for_what_it_is(files: Files, name: str, output_format: str) -> None:
    prompt, as_taken = PROMPTS[name]
    for file in files[name, output_format]:
        sampler = sd_parsed(file.path)
        assert [each.value for each in sampler.prompts] == [as_taken or prompt]
        assert [each.value for each in sampler.negative_prompts] == (
            [as_taken or prompt] if file.negative_prompt else []
        )
        assert sampler.parameters == {"cfg_scale": "5", "seed": str(SEED), "steps": "4"}
        assert sampler.model is not None
        assert (sampler.model.name, sampler.model.hash) == ("sdxl", "0123456789")


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_no_models_name_is_taken_for_anything_else(tmp_path: Path, name: str, output_format: OutputFormat) -> None:
    file = Written(tmp_path / f"picture.{output_format}", output_format, "a cat", name=name)
    last = file.text.split("\n")[-1]
    assert last == file.text.splitlines()[-1], "nothing in it is taken for the end of a line"
    quoted = re.findall(r'\bModel: ("(?:\\.|[^"\\])*"|[^,]*)(?:, |$)', last)
    assert [unquoted(each) for each in quoted] == [name]
    assert re.findall(r"\bSeed: (\d+)", file.text) == [str(SEED)]

    reader = ImageDataReader(str(file.path))
    assert (unquoted(reader.parameter["model"]), reader.parameter["seed"]) == (name, str(SEED))
    sampler = sd_parsed(file.path)
    assert sampler.parameters["seed"] == str(SEED)
    assert sampler.model is not None
    assert sampler.model.name is not None
    assert unquoted(sampler.model.name) == name


def sd_parsed(path: Path) -> Sampler:
    """Return what sd-parsers takes from a file."""
    # It keeps the last comment by the address of its picture, where another one may lie by now.
    _jpeg_usercomment._image_id = None
    told = ParserManager().parse(path)
    assert told is not None
    (sampler,) = told.samplers
    return sampler


def unquoted(value: str) -> str:
    """Return a value as popular UIs read it: a JSON string, or as it is."""
    return str(json.loads(value)) if value.startswith('"') else value


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("text", ["a cat, Steps: 4", "苹果 🍎", "一三上下不世中", "Straße"])
def test_comments_that_exiftool_wrote_are_read(tmp_path: Path, exiftool: Exiftool, order: str, text: str) -> None:
    path = tmp_path / "theirs.jpg"
    Image.new("RGB", (8, 8)).save(path)
    exiftool([path], "-q", f"-ExifByteOrder={order}", f"-UserComment={text}")
    assert user_comment(opened(path)) == text
