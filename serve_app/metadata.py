"""The parameters inside a picture file: for programs, other UIs, and readers that ask whether a model made it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from PIL import Image as Pillow
from pydantic import BaseModel, ConfigDict

from serve_app import __version__
from serve_app.exif import user_comment
from serve_app.messages import Slot
from serve_app.recipe import Embedding, Lora, Output, Recipe, Variation
from serve_app.samplers import said_of
from serve_app.schemas import GenerateRequest, ModelInfo

_PARTS = re.compile(r"(Negative prompt|Steps):")
"""Readers split the text at these words."""
_LINE_BREAKS = re.compile(r"\r\n?")
_CONTROLS = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_SEPARATORS = re.compile(r"[,:\x7f-\x9f\u2028\u2029]")
"""Characters that separate values or lines."""

# https://cv.iptc.org/newscodes/digitalsourcetype/ has a mark for generated pictures, and one for those that also hold
# what was given.
_GENERATED, _COMPOSITE = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' xmlns:psdxl="urn:parallel-sdxl:1"'
    ' Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{source}"'
    " psdxl:parameters={parameters}/></rdf:RDF></x:xmpmeta>"
    '<?xpacket end="w"?>'
)
_XMP_NAMESPACE = "urn:parallel-sdxl:1"
_XMP_PARAMETERS = f"{{{_XMP_NAMESPACE}}}parameters"
_NO_PARAMETERS = json.dumps({})
_WRITTEN_FIELDS = {"seed", "variations", *Recipe.model_fields, *Output.model_fields}


@dataclass(frozen=True, slots=True)
class Embedded:
    """The parameters in a picture of ours: a request that generates it again, and what generated it."""

    request: GenerateRequest
    model: ModelInfo
    version: str


_HASH_DIGITS = 10


class _Written(BaseModel):
    """The JSON of `parameters_json`; its extra fields are those of a request."""

    model_config = ConfigDict(extra="allow")

    model: ModelInfo
    version: str


def parameters_text(slot: Slot, model: ModelInfo) -> str:
    """Return the parameters as text for popular UIs, which read it from a PNG's `parameters` chunk."""
    recipe = slot.recipe
    assert recipe.scheduler is not None, "the plan has chosen one"
    sampler, schedule = said_of(recipe.scheduler, recipe.sigma_schedule)
    loras = "".join(f" <lora:{lora.name}:{lora.scale:.10g}>" for lora in recipe.adapters)
    lines = [_shielded(recipe.prompt + loras)]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {_shielded(recipe.negative_prompt)}")
    values = {
        "Steps": recipe.num_inference_steps,
        "Sampler": sampler,
        **({"Schedule type": schedule} if schedule else {}),
        "CFG scale": f"{recipe.guidance_scale:.10g}",
        **({"CFG rescale": f"{recipe.guidance_rescale:.10g}"} if recipe.guidance_rescale else {}),
        "Seed": slot.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": model.hash,
        "Model": _quoted(model.name),
        **_of_variations(slot.variations),
        **_of_before(recipe),
        **_emphasis(recipe),
        **{name: _quoted(text) for name, text in _of_second_encoder(recipe) if text},
        **_hashes("Lora hashes", recipe.adapters),
        **_hashes("TI hashes", recipe.embeddings),
        **_of_pictures(recipe),
        "Version": f"parallel-sdxl {__version__}",
    }
    lines.append(", ".join(f"{name}: {value}" for name, value in values.items()))
    return "\n".join(lines)


def _emphasis(recipe: Recipe) -> dict[str, str]:
    """Return what A1111's web UI must know of prompts with brackets to read them as they were read here."""
    has_brackets = any("(" in prompt or "[" in prompt for prompt in recipe.texts.values())
    return {"Emphasis": "No norm" if recipe.prompt_syntax == "weighted" else "None"} if has_brackets else {}


def _hashes(title: str, files: Sequence[Lora | Embedding]) -> dict[str, str]:
    """Return how other tools know the files of adapters again: by the first ten digits of their SHA-256."""
    known = [(file.name, file.hash.rpartition(":")[2]) for file in files if file.hash]
    listed = ", ".join(f"{name}: {digits[:_HASH_DIGITS]}" for name, digits in known)
    return {title: json.dumps(listed, ensure_ascii=False)} if known else {}


def _of_variations(variations: Sequence[Variation]) -> dict[str, object]:
    """Return A1111's words for one variation, InvokeAI's for several, which A1111 cannot generate."""
    if len(variations) == 1:
        (one,) = variations
        return {"Variation seed": one.seed, "Variation seed strength": f"{one.strength:.10g}"}
    several = ", ".join(f"{one.seed}:{one.strength:.10g}" for one in variations)
    return {"Variations": _quoted(several)} if several else {}


def _of_before(recipe: Recipe) -> dict[str, str]:
    """Return what programs that know branches read; for people the prompt is the one that ended the picture."""
    phases = [{"until_step": phase.until_step, **phase.settings} for phase in recipe.before]
    return {"Before": _quoted(json.dumps(phases, ensure_ascii=False))} if phases else {}


def _of_second_encoder(recipe: Recipe) -> tuple[tuple[str, str | None], ...]:
    return ("Prompt 2", recipe.prompt_2), ("Negative prompt 2", recipe.negative_prompt_2)


def _of_pictures(recipe: Recipe) -> dict[str, object]:
    """Return what popular UIs write of a picture to go on from."""
    if recipe.init_image is None or recipe.strength is None:
        return {}
    masked = recipe.mask_image is not None
    return {
        "Denoising strength": f"{recipe.strength:.10g}",
        **({"Mask blur": recipe.mask_blur} if masked else {}),
        **(
            {"Masked area padding": recipe.padding_mask_crop} if masked and recipe.padding_mask_crop is not None else {}
        ),
        "Init image hash": recipe.init_image.rpartition(":")[2],
        **({"Mask hash": recipe.mask_image.rpartition(":")[2]} if recipe.mask_image else {}),
    }


def parameters_json(slot: Slot, model: ModelInfo) -> dict[str, object]:
    """Return the parameters for programs: a request for this picture, and what generated it."""
    return {
        **slot.recipe.model_dump(exclude=slot.recipe.without_meaning),
        "seed": slot.seed,
        **({"variations": [one.model_dump() for one in slot.variations]} if slot.variations else {}),
        **slot.output.model_dump(),
        "model": model.model_dump(),
        "version": __version__,
    }


def xmp_packet(parameters: dict[str, object], *, composite: bool = False) -> str:
    """Return the XMP packet, which says that a model made the picture, and how. A sheet has no parameters.

    `composite`: the model went on from a picture that was given.
    """
    # json.dumps escapes all but ASCII: XML cannot hold every character that JSON can.
    source = _COMPOSITE if composite else _GENERATED
    return _XMP.format(source=source, parameters=quoteattr(json.dumps(parameters)))


def embedded_parameters(image: Pillow.Image) -> Embedded | None:
    """Return what `parameters_json` put into an open picture, or None if there is none.

    Raises ValueError if this version cannot read it.
    """
    packet = image.info.get("xmp", b"")
    if not isinstance(packet, bytes) or _XMP_NAMESPACE.encode() not in packet:
        return None
    try:
        # Safe for untrusted XML: expat limits entity expansion, and ElementTree fetches nothing.
        root = ElementTree.fromstring(packet.rstrip(b"\0 "))  # noqa: S314 - as above
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"its XMP packet is not XML: {error}") from None
    text = next((found for element in root.iter() if (found := element.get(_XMP_PARAMETERS))), _NO_PARAMETERS)
    if text == _NO_PARAMETERS:
        return None
    written = _Written.model_validate_json(text)
    request = written.model_extra or {}
    if "seed" not in request or not set(request) <= _WRITTEN_FIELDS:
        raise ValueError("it does not describe a single picture")
    return Embedded(GenerateRequest.model_validate({**request, "num_images": 1}), written.model, written.version)


def parameters_chunk(image: Pillow.Image) -> str | None:
    """Return the text that popular UIs write: a PNG's `parameters` chunk, else the EXIF user comment."""
    if text := image.info.get("parameters"):
        return str(text)
    return user_comment(image) or None


def _shielded(prompt: str) -> str:
    """Return a prompt in which no reader finds another part of the text.

    The format cannot quote a prompt. The changes (a space before a colon, the kind of line break) do not change CLIP's
    tokens.
    """
    return _PARTS.sub(r"\1 :", _CONTROLS.sub("\ufffd", _LINE_BREAKS.sub("\n", prompt)))


def _quoted(value: str) -> str:
    """Return a value for the last line of the text: as it is, or as a JSON string, which popular UIs read.

    Separators inside the string are escaped too, because some readers split the line without looking at quotes.
    """
    if value.isprintable() and value == value.strip() and not set(value) & set(',:"'):
        return value
    return _SEPARATORS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
