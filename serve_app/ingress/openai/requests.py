"""Translates requests of the OpenAI Images API to the service's own."""

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

_SAME = {*Recipe.model_fields, *Output.model_fields, "seed", "seeds", "timeout_s"} - {"width", "height"}
"""Fields that are the same in both APIs."""


def images_request(request: type[GenerateRequest], model: ModelConfig) -> type[ImagesRequest]:
    """Return the class that validates bodies, with a service's own bounds and defaults."""
    fields: dict[str, Any] = {name: borrowed(request, name) for name in sorted(_SAME)} | {
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
    """Translate a body to a request of this service. Raises InvalidRequest or RequestValidationError."""
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
    """Return whether to answer with URLs.

    By default only if the service can (`can_be`), the request is no stream, and OpenAI's model of that name does so.
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
    """Return the steps with a partial image, evenly spread; fewer than asked for if there are too few steps."""
    due = {round(steps * k / (partial_images + 1)) for k in range(1, partial_images + 1)}
    return sorted(step for step in due if 0 < step < steps)
