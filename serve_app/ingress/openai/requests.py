"""From the OpenAI Images API's requests to the service's own."""

import re
from typing import Any

from pydantic import Field, create_model

from serve_app.config import ModelConfig
from serve_app.errors import InvalidRequest
from serve_app.ingress.openai.names import is_dall_e
from serve_app.ingress.openai.schemas import ImagesRequest
from serve_app.ingress.requests import borrowed, sizes, translated
from serve_app.recipe import Output, Recipe
from serve_app.schemas import GenerateRequest

_SAME = {*Recipe.model_fields, *Output.model_fields, "seed", "seeds"} - {"width", "height"}
"""Fields that both APIs have."""


def images_request(request: type[GenerateRequest], model: ModelConfig) -> type[ImagesRequest]:
    """Return the class to validate bodies with, with the bounds and defaults of a service's own requests."""
    fields: dict[str, Any] = {name: borrowed(request, name) for name in _SAME} | {
        "n": borrowed(request, "num_images", default=1),
        "size": (
            str,
            Field(
                default="auto", description=f"`WIDTHxHEIGHT`, {sizes(model)}; or `auto`: {model.width}x{model.height}."
            ),
        ),
    }
    return create_model("ImagesRequest", __base__=ImagesRequest, __doc__=ImagesRequest.__doc__, **fields)


def own_request(body: ImagesRequest, request: type[GenerateRequest], model: ModelConfig) -> GenerateRequest:
    """Return what a body asks for as a request of this service. Raises InvalidRequest or RequestValidationError."""
    width, height = _size(body.size, model)
    return translated(
        request,
        model,
        "size",
        width=width,
        height=height,
        preview_steps=_spread(body.partial_images, body.num_inference_steps),
        **body.model_dump(include=_SAME),
        **({} if body.seeds else {"num_images": body.n}),
    )


def wants_urls(body: ImagesRequest, can_be: bool) -> bool:
    """Return whether finished images are to come at URLs.

    Where the request does not say, they do if they `can_be`, it is no stream, and the model asked for is known for it.
    """
    if body.response_format is not None:
        return body.response_format == "url"
    return can_be and not body.stream and body.model is not None and is_dall_e(body.model)


def _size(text: str, model: ModelConfig) -> tuple[int, int]:
    if text == "auto":
        return model.width, model.height
    if not (size := re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)):
        raise InvalidRequest(f"size: must be auto or WIDTHxHEIGHT, {sizes(model)}", "size")
    return int(size[1]), int(size[2])


def _spread(partial_images: int, steps: int) -> list[int]:
    """Return the steps after which partial images are due, evenly spread; fewer where steps are too few."""
    due = {round(steps * k / (partial_images + 1)) for k in range(1, partial_images + 1)}
    return sorted(step for step in due if 0 < step < steps)
