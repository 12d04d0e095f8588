"""Translates the service's answers to those of A1111's API."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from serve_app.ingress.a1111.jobs import Job
from serve_app.ingress.a1111.schemas import ImagesAnswer, PngInfo, Txt2Img
from serve_app.ingress.a1111.settings import title_of
from serve_app.messages import Slot
from serve_app.metadata import parameters_text
from serve_app.recipe import Output, Recipe, Variation
from serve_app.samplers import said_of
from serve_app.schemas import ImageEvent, ModelInfo, PreviewEvent, StartEvent

_NOT_TOLD = {"override_settings", "init_images", "mask"}
"""Of a request; they may be large. Nor are unknown fields, which may hold a password."""
_PAIR = re.compile(r'\s{0,9}(\w[\w \-/]{1,60}):\s{0,9}("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_LONGEST_LINE = 8000
"""Characters; longer lines take too long to split, and no program writes them."""


def answer_of(body: Txt2Img, start: StartEvent, job: Job, warnings: list[str]) -> ImagesAnswer:
    """Return the answer to a request whose events a job has heard.

    Images that failed are left out; of those that were interrupted there is the last preview.
    """
    images = job.pictures
    parameters = start.parameters
    recipe, output = Recipe.of(parameters), Output.of(parameters)
    slots = [Slot(image.index, image.seed, recipe, output, variations=_of(start, image.index)) for image in images]
    info = {
        **_settings(start),
        "seed": (images[0].seed if images else start.seeds[0]),
        "all_seeds": [image.seed for image in images],
        "all_prompts": [parameters.prompt] * len(images),
        "all_negative_prompts": [parameters.negative_prompt] * len(images),
        "all_subseeds": [_subseed(start, image.index) for image in images],
        "batch_size": body.batch_size,
        "infotexts": [
            parameters_text(slot, _model(image) or parameters.model) for slot, image in zip(slots, images, strict=True)
        ],
        "failures": [
            {"image_index": image.index, "seed": image.seed, **image.error.model_dump()}
            for _, image in sorted(job.missing.items())
        ],
        "warnings": [*start.warnings, *job.warnings, *warnings, *_interruptions(images)],
    }
    fields = type(body).model_fields.keys() - _NOT_TOLD
    return ImagesAnswer(
        images=[image.b64_json for image in images],
        parameters=body.model_dump(include=set(fields)),
        info=json.dumps(info),
    )


def _of(start: StartEvent, index: int) -> tuple[Variation, ...]:
    """Return the variations of an image."""
    return start.variations[index] if start.variations else ()


def _subseed(start: StartEvent, index: int) -> int | None:
    """Return the variation seed of an image, or its seed: without a variation it has no effect."""
    variations = _of(start, index)
    return variations[-1].seed if variations else start.seeds[index]


def _model(picture: ImageEvent | PreviewEvent) -> ModelInfo | None:
    """Return the model that generated a picture, where it is another than the request's."""
    return picture.model if isinstance(picture, ImageEvent) else None


def _interruptions(pictures: Sequence[ImageEvent | PreviewEvent]) -> Iterator[str]:
    for place, picture in enumerate(pictures):
        if isinstance(picture, PreviewEvent):
            last = picture.num_inference_steps
            yield f"images.{place}: was interrupted; this is a preview after step {picture.step} of {last}"


def _settings(start: StartEvent) -> dict[str, Any]:
    parameters = start.parameters
    sampler, schedule = said_of(parameters.scheduler, parameters.sigma_schedule)
    return {
        "prompt": parameters.prompt,
        "negative_prompt": parameters.negative_prompt,
        "subseed": _subseed(start, 0),
        "subseed_strength": variations[-1].strength if (variations := _of(start, 0)) else 0,
        "width": parameters.width,
        "height": parameters.height,
        "sampler_name": sampler,
        "cfg_scale": parameters.guidance_scale,
        "steps": parameters.num_inference_steps,
        "denoising_strength": parameters.strength,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": parameters.model.name,
        "sd_model_hash": parameters.model.hash,
        "sd_model_checkpoint": title_of(parameters.model),
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "extra_generation_params": {"Schedule type": schedule} if schedule else {},
        "index_of_first_image": 0,
        "styles": [],
        "job_timestamp": "0",
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
    }


def png_info_of(text: str) -> PngInfo:
    """Return what the text in a picture says."""
    *_, last = text.split("\n")
    prompt, _, rest = text.removesuffix(last).partition("Negative prompt:")
    parameters = dict(_PAIR.findall(last)) if len(last) <= _LONGEST_LINE else {}
    if parameters:
        parameters |= {"Prompt": prompt.strip(), "Negative prompt": rest.strip()}
    return PngInfo(info=text, items={"parameters": text} if text else {}, parameters=parameters)
