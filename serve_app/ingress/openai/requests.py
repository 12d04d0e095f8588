"""Translates requests of the OpenAI Images API to the service's own."""

import re
from collections.abc import Set
from typing import Any

from pydantic import Field, create_model

from serve_app.config import ModelConfig
from serve_app.errors import InvalidRequest
from serve_app.ingress.offers import Offer
from serve_app.ingress.openai.names import is_dall_e
from serve_app.ingress.openai.schemas import ImagesRequest
from serve_app.ingress.pictures import usual_strength
from serve_app.ingress.requests import borrowed, sizes, translated
from serve_app.recipe import Output, Recipe
from serve_app.schemas import GenerateRequest

SAME = {*Recipe.model_fields, *Output.model_fields, "seed", "seeds", "variations", "keep", "timeout_s"} - {
    "width",
    "height",
}
"""Fields that are the same in both APIs."""


def images_request(offer: Offer) -> type[ImagesRequest]:
    """Return the class that validates bodies for a model, with its bounds and defaults."""
    fields = images_fields(offer)
    return create_model("ImagesRequest", __base__=ImagesRequest, __doc__=ImagesRequest.__doc__, **fields)


def images_fields(offer: Offer) -> dict[str, Any]:
    """Return the fields of a body that are a model's own."""
    request, model = offer.request, offer.model
    return {name: borrowed(request, name) for name in sorted(SAME)} | {
        "n": borrowed(request, "num_images", default=1),
        "size": (
            str,
            Field(
                default="auto",
                description=f"`WIDTHxHEIGHT`, {sizes(model)}; or `auto`: {model.width}x{model.height}, or the size of "
                "the picture to go on from.",
            ),
        ),
    }


def own_request(body: ImagesRequest, offer: Offer, same: Set[str] = SAME, **own: Any) -> GenerateRequest:
    """Translate a body to a request of this service; `same` are the fields to take over, `own` are further ones.

    Raises InvalidRequest or RequestValidationError.
    """
    request, model = offer.request, offer.model
    fields = body.model_dump(include={*same}) | own | _size(body.size, model)
    if fields["init_image"] is not None and fields["strength"] is None:
        fields["strength"] = usual_strength(masked=fields.get("mask_image") is not None)
    if not body.seeds:
        fields["num_images"] = body.n
    asked = translated(request, model, "size", preview_steps=[], **fields)
    return asked.model_copy(update={"preview_steps": _spread(body.partial_images, asked)})


def wants_urls(body: ImagesRequest, can_be: bool) -> bool:
    """Return whether to answer with URLs.

    By default only if the service can (`can_be`), the request is no stream, and OpenAI's model of that name does so.
    """
    if body.response_format is not None:
        return body.response_format == "url"
    return can_be and not body.stream and body.model is not None and is_dall_e(body.model)


def _size(text: str, model: ModelConfig) -> dict[str, int]:
    """Return the sides that a text names: none for `auto`."""
    if text == "auto":
        return {}
    if not (size := re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)):
        raise InvalidRequest(f"size: must be auto or WIDTHxHEIGHT, {sizes(model)}", "size")
    return {"width": int(size[1]), "height": int(size[2])}


def _spread(partial_images: int, asked: GenerateRequest) -> list[int]:
    """Return the steps with a partial image, evenly spread over those that are done; fewer if these are too few."""
    first, last = asked.first_step, asked.num_inference_steps
    due = {first + round((last - first) * k / (partial_images + 1)) for k in range(1, partial_images + 1)}
    return sorted(step for step in due if first < step < last)
