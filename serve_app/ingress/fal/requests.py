"""Translates fal's input to the service's requests."""

from typing import Any, TypeVar

from pydantic import Field, create_model

from serve_app.ingress.fal.schemas import SIZES, FastSdxlInput, Size
from serve_app.ingress.offers import Offer
from serve_app.ingress.requests import borrowed, sizes, translated
from serve_app.recipe import OF_CONDITIONING
from serve_app.schemas import GenerateRequest

_SAME = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "num_images", "seed", "timeout_s")
"""Fields that are the same in both APIs."""
_OURS = (*OF_CONDITIONING, "prompt_syntax", "variations", "before", "keep")
"""Fields that fal does not have."""

NAMES = {"init_image": "image_url", "mask_image": "mask_url"}
"""What fal calls our fields."""

Input = TypeVar("Input", bound=FastSdxlInput)


def input_class(kind: type[Input], offer: Offer) -> type[Input]:
    """Return the class that validates bodies for a model, with its bounds and defaults; but `num_images` is 1."""
    request, model = offer.request, offer.model
    fields: dict[str, Any] = {
        name: borrowed(request, name) for name in (*_SAME, "strength") if name in kind.model_fields
    }
    fields |= {name: borrowed(request, name) for name in _OURS}
    fields |= {
        "num_images": borrowed(request, "num_images", default=1),
        "image_size": (
            FastSdxlInput.model_fields["image_size"].annotation,
            Field(
                default=None,
                description=f"A name or a size; width and height must be {sizes(model)}. "
                f"Null: {model.width}x{model.height}, or the size of the picture to go on from.",
            ),
        ),
    }
    return create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **fields)


def own_request(body: FastSdxlInput, offer: Offer) -> GenerateRequest:
    """Translate a body to a request of this service. Raises InvalidRequest or RequestValidationError."""
    fields = body.model_dump(include={*_SAME, *_OURS, "strength"}) | _size(body) | _pictures(body)
    fields["loras"] = [{"name": lora.path, "scale": lora.scale} for lora in body.loras]
    return translated(offer.request, offer.model, "image_size", output_format=body.format, **fields)


def _size(body: FastSdxlInput) -> dict[str, int]:
    match body.image_size:
        case None:
            return {}
        case Size():
            return {"width": body.image_size.width, "height": body.image_size.height}
        case name:
            width, height = SIZES[name]
            return {"width": width, "height": height}


def _pictures(body: FastSdxlInput) -> dict[str, str]:
    return {own: getattr(body, theirs) for own, theirs in NAMES.items() if theirs in type(body).model_fields}
