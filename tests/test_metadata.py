"""Picture files contain the parameters needed to generate them again."""

import base64
import io
import json
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ExifTags, Image

from serve_app import __version__
from serve_app.fanout.plan import seeds_of, slots_of
from serve_app.imaging import Pixels, encode_bare, encode_picture
from serve_app.messages import Slot
from serve_app.metadata import embedded_parameters, parameters_chunk
from serve_app.recipe import OF_PICTURES, Output, OutputFormat, Variation
from serve_app.schemas import ModelInfo
from tests.conftest import make_slot

SAMPLED: dict[str, Any] = {"prediction_type": "v_prediction", "timestep_spacing": None, "rescale_betas_zero_snr": True}
MODEL = ModelInfo(name="sdxl", revision="abc123", hash="0123456789", **SAMPLED)
PIXELS: Pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
TRAINED_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
FORMATS: list[OutputFormat] = ["png", "jpeg", "webp"]
XMP = '<a xmlns:psdxl="urn:parallel-sdxl:1" psdxl:parameters="%s"/>'
TEXT = (
    'a <red> "apple" & 苹果 🍎\nNegative prompt: dull\n'
    "Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5.5, CFG rescale: 0.7, Seed: 4294967295, "
    'Size: 48x64, Model hash: 0123456789, Model: sdxl, Emphasis: No norm, Prompt 2: "ink\\u002c (wash)", '
    f"Version: parallel-sdxl {__version__}"
)


@pytest.fixture
def slot() -> Slot:
    return make_slot(
        prompt='a <red> "apple" & 苹果 🍎',
        negative_prompt="dull",
        seed=2**32 - 1,
        width=48,
        height=64,
        scheduler="dpmpp_2m_karras",
        guidance_scale=5.5,
        guidance_rescale=0.7,
        prompt_2="ink, (wash)",
        prompt_syntax="weighted",
        original_size=(512, 768),
    )


def opened(slot: Slot, output_format: OutputFormat) -> Image.Image:
    slot = replace(slot, output=Output(output_format=output_format))
    return Image.open(io.BytesIO(base64.b64decode(encode_picture(PIXELS, slot, MODEL))))


def xmp_of(image: Image.Image) -> dict[str, str]:
    """Return the properties of a picture's XMP packet, by name with namespace."""
    raw = image.info.get("XML:com.adobe.xmp") or image.info["xmp"]
    packet = raw if isinstance(raw, bytes) else raw.encode()
    description = ElementTree.fromstring(packet).find(".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")  # noqa: S314 - our own
    assert description is not None
    return description.attrib


def test_png_has_the_chunk_that_other_uis_read(slot: Slot) -> None:
    assert opened(slot, "png").info["parameters"] == TEXT


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_the_others_have_it_as_a_user_comment(slot: Slot, output_format: OutputFormat) -> None:
    comment = opened(slot, output_format).getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment.startswith(b"UNICODE\0")
    assert comment[8:].decode("utf-16-be") == TEXT


def test_a_prompt_with_brackets_says_that_they_are_words() -> None:
    assert ", Emphasis: None, " in opened(make_slot(prompt="a cat (1990)"), "png").info["parameters"]
    assert "Emphasis" not in opened(make_slot(), "png").info["parameters"]


def test_no_negative_prompt_no_line(slot: Slot) -> None:
    assert "Negative" not in opened(make_slot(), "png").info["parameters"]


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_format_says_that_a_model_made_it(slot: Slot, output_format: OutputFormat) -> None:
    assert xmp_of(opened(slot, output_format))[SOURCE_TYPE] == TRAINED_MEDIA


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_format_holds_the_request_for_this_one_picture(slot: Slot, output_format: OutputFormat) -> None:
    assert json.loads(xmp_of(opened(slot, output_format))["{urn:parallel-sdxl:1}parameters"]) == {
        "prompt": slot.recipe.prompt,
        "negative_prompt": "dull",
        "seed": 2**32 - 1,
        "width": 48,
        "height": 64,
        "num_inference_steps": 4,
        "guidance_scale": 5.5,
        "guidance_rescale": 0.7,
        "prompt_2": "ink, (wash)",
        "prompt_syntax": "weighted",
        "original_size": [512, 768],
        "scheduler": "dpmpp_2m_karras",
        "output_format": output_format,
        "output_compression": None,
        "model": {"name": "sdxl", "revision": "abc123", "hash": "0123456789", **SAMPLED},
        "version": __version__,
    }


@pytest.mark.parametrize("output_format", FORMATS)
def test_what_is_written_is_read_as_the_request_that_generates_the_picture_again(
    slot: Slot, output_format: OutputFormat
) -> None:
    embedded = embedded_parameters(opened(slot, output_format))
    assert embedded
    assert (embedded.model, embedded.version) == (MODEL, __version__)
    (again,) = slots_of(embedded.request, seeds_of(embedded.request), "euler")
    assert again == replace(slot, output=Output(output_format=output_format), preview_steps=again.preview_steps)


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_text_that_other_uis_read_is_read_from_every_format(slot: Slot, output_format: OutputFormat) -> None:
    assert parameters_chunk(opened(slot, output_format)) == TEXT


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_picture_of_somebody_else_holds_no_parameters(output_format: OutputFormat) -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, output_format)
    assert embedded_parameters(Image.open(file)) is None
    assert parameters_chunk(Image.open(file)) is None


@pytest.mark.parametrize("packet", ["<no xml urn:parallel-sdxl:1", XMP % "[]", XMP % "{&quot;prompt&quot;: 5}"])
def test_parameters_that_nobody_wrote_so_are_an_error(packet: str) -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "webp", xmp=packet.encode())
    with pytest.raises(ValueError, match=r"XML|valid"):
        embedded_parameters(Image.open(file))


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_longest_prompts_fit_every_format(output_format: OutputFormat) -> None:
    longest = "🍎" * 2000
    embedded = embedded_parameters(opened(make_slot(prompt=longest, negative_prompt=longest), output_format))
    assert embedded
    assert (embedded.request.prompt, embedded.request.negative_prompt) == (longest, longest)


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_picture_that_goes_on_from_another_says_from_which(output_format: OutputFormat) -> None:
    given = {
        "init_image": "sha256:0123456789abcdef",
        "mask_image": "sha256:fedcba9876543210",
        "strength": 0.75,
        "mask_blur": 4,
        "padding_mask_crop": 32,
        "keep_outside": False,
    }
    image = opened(make_slot(**given), output_format)
    assert xmp_of(image)[SOURCE_TYPE] == TRAINED_MEDIA.replace("trained", "compositeWithTrained")
    embedded = embedded_parameters(image)
    assert embedded
    assert embedded.request.model_dump(include={*given}) == given
    told = (
        "Denoising strength: 0.75, Mask blur: 4, Masked area padding: 32, "
        "Init image hash: 0123456789abcdef, Mask hash: fedcba9876543210, Version: "
    )
    assert told in str(parameters_chunk(image))


def test_a_picture_of_words_alone_says_nothing_of_pictures(slot: Slot) -> None:
    embedded = embedded_parameters(opened(slot, "png"))
    assert embedded
    assert not embedded.request.model_fields_set & {*OF_PICTURES}, "older versions read it too"


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_sheet_says_so_too(output_format: OutputFormat) -> None:
    image = Image.open(io.BytesIO(base64.b64decode(encode_bare(PIXELS, output_format, None))))
    assert xmp_of(image)[SOURCE_TYPE] == TRAINED_MEDIA
    assert not image.getexif()
    assert "exif" not in image.info, "an empty block would not be EXIF"
    assert embedded_parameters(image) is None
    assert parameters_chunk(image) is None


def test_loras_are_written_as_other_tools_write_them() -> None:
    loras = [{"name": "ink", "scale": 0.5, "hash": "sha256:0123456789abcdef"}, {"name": "none", "scale": 0.0}]
    text = opened(make_slot(loras=loras), "png").info["parameters"]
    assert text.startswith("a red apple <lora:ink:0.5>\n")
    hostile = opened(make_slot(loras=[{"name": "Steps: 9, Seed: 1", "scale": 1.0, "hash": "sha256:0"}]), "png")
    assert hostile.info["parameters"].startswith("a red apple <lora:Steps : 9"), "no reader finds another part in it"
    assert ', Lora hashes: "ink: 0123456789", ' in text
    assert "none" not in text


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_branch_says_what_it_was_before(output_format: OutputFormat) -> None:
    before = [{"until_step": 2, "prompt": "Steps: 9, Seed: 1"}, {"until_step": 3, "guidance_scale": 1.0}]
    slot = make_slot(seed=7, before=before)
    image = opened(slot, output_format)
    text = parameters_chunk(image)
    assert text is not None
    assert text.startswith("a red apple\nSteps: 4, ")
    assert json.loads(json.loads(f'"{text.partition("Before: ")[2].partition(", ")[0][1:-1]}"')) == before
    assert "Before" not in str(parameters_chunk(opened(make_slot(), output_format)))
    embedded = embedded_parameters(image)
    assert embedded is not None
    (again,) = slots_of(embedded.request, seeds_of(embedded.request), "euler")
    assert again.recipe == slot.recipe, "the picture is a request for itself"


def test_relatives_say_which_they_are() -> None:
    one, two = Variation(seed=5, strength=0.25), Variation(seed=6, strength=0.1)
    for variations, words in (
        ((), None),
        ((one,), "Model: sdxl, Variation seed: 5, Variation seed strength: 0.25, Version"),
        ((one, two), 'Model: sdxl, Variations: "5\\u003a0.25\\u002c 6\\u003a0.1", Version'),
    ):
        image = opened(replace(make_slot(seed=7), variations=variations), "png")
        text = parameters_chunk(image)
        assert text is not None
        assert ("Variation" in text) == (words is not None)
        assert words is None or words in text
        embedded = embedded_parameters(image)
        assert embedded is not None
        request = embedded.request
        assert (request.seed, request.variations) == (7, variations)
        (again,) = slots_of(request, seeds_of(request), "euler")
        assert (again.seed, again.variations) == (7, variations), "the picture is a request for itself"
