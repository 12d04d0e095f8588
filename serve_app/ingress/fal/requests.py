"""Translates fal's input to the service's requests."""

from typing import Any

from pydantic import Field, create_model

from serve_app.config import ModelConfig
from serve_app.ingress.fal.schemas import SIZES, FastSdxlInput, Size
from serve_app.ingress.requests import borrowed, sizes, translated
from serve_app.schemas import GenerateRequest

_SAME = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "num_images", "seed", "timeout_s")
"""Fields that are the same in both APIs."""


def fast_sdxl_input(request: type[GenerateRequest], model: ModelConfig) -> type[FastSdxlInput]:
    """Return the class that validates bodies, with a service's own bounds and defaults; but `num_images` is 1."""
    fields: dict[str, Any] = {name: borrowed(request, name) for name in _SAME} | {
        "num_images": borrowed(request, "num_images", default=1),
        "image_size": (
            FastSdxlInput.model_fields["image_size"].annotation,
            Field(
                default=None,
                description=f"A name or a size; width and height must be {sizes(model)}. "
                f"Null: {model.width}x{model.height}.",
            ),
        ),
    }
    return create_model("FastSdxlInput", __base__=FastSdxlInput, __doc__=FastSdxlInput.__doc__, **fields)


def own_request(body: FastSdxlInput, request: type[GenerateRequest], model: ModelConfig) -> GenerateRequest:
    """Translate a body to a request of this service. Raises InvalidRequest."""
    match body.image_size:
        case None:
            width, height = model.width, model.height
        case Size():
            width, height = body.image_size.width, body.image_size.height
        case name:
            width, height = SIZES[name]
    same = body.model_dump(include=set(_SAME))
    return translated(request, model, "image_size", width=width, height=height, output_format=body.format, **same)
