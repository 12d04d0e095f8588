"""Request classes with the limits and defaults of one service."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, Field, ValidationError, create_model, model_validator

from serve_app.body import Body
from serve_app.config import AppArgs, ModelConfig
from serve_app.errors import InvalidRequest
from serve_app.recipe import Recipe
from serve_app.schemas import FieldError, GenerateRequest

_SERVED_DEFAULTS = Recipe.model_fields.keys() & ModelConfig.model_fields.keys() - {"scheduler"}
"""Settings that default to the served model's. Not the scheduler: the checkpoint may hold its default."""


_ABOUT = ("title", "description", "default")
"""What a JSON Schema says of a field besides its values."""


def _with_null(schema: dict[str, Any]) -> None:
    """Say that every field that may be left out may be null."""
    for name in schema["properties"].keys() - set(schema["required"]):
        field = schema["properties"][name]
        values = {word: field.pop(word) for word in list(field) if word not in _ABOUT}
        kinds = values.get("anyOf", [values])
        field["anyOf"] = kinds if {"type": "null"} in kinds else [*kinds, {"type": "null"}]


class ForeignRequest(Body):
    """A request body of another API: strict like our own, but null means the default."""

    model_config = ConfigDict(json_schema_extra=_with_null)

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body


def request_model(args: AppArgs) -> type[GenerateRequest]:
    """Return the class that validates bodies; OpenAPI shows the same limits because it reads this class."""
    limits, model = args.limits, args.model
    side = {"ge": model.min_size, "le": model.max_size}
    bounds: dict[str, dict[str, Any]] = {
        "num_images": {"le": limits.max_images, "default": min(4, limits.max_images)},
        "seeds": {"max_length": limits.max_images},
        "width": side,
        "height": side,
        "num_inference_steps": {"le": limits.max_steps},
        "loras": {"json_schema_extra": {"maxItems": args.adapters.max_per_request}},  # the fan-out sees to it
        "timeout_s": {"le": args.request_timeout_s} if isfinite(args.request_timeout_s) else {},
    }
    defaults = {name: {"default": getattr(model, name)} for name in _SERVED_DEFAULTS}
    fields: dict[str, Any] = {
        name: borrowed(GenerateRequest, name, **bounds.get(name, {}), **defaults.get(name, {}))
        for name in bounds.keys() | defaults.keys()
    }
    return create_model("GenerateRequest", __base__=GenerateRequest, __doc__=GenerateRequest.__doc__, **fields)


def borrowed(request: type[GenerateRequest], name: str, **changes: Any) -> Any:
    """Return a field of a service's requests with its bounds, for the request class of another API.

    `changes` are arguments of `Field`.
    """
    field = request.model_fields[name]
    return Annotated[
        (
            field.annotation,
            *field.metadata,
            Field(**{"default": field.default, "description": field.description} | changes),
        )
    ]


def sizes(model: ModelConfig) -> str:
    """Return the allowed widths and heights in words."""
    return f"multiples of 8 from {model.min_size} to {model.max_size}"


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors about fields call them by the `names` that another API has for ours."""
    try:
        yield
    except InvalidRequest as error:
        if error.param is None or error.param not in names:
            raise
        param, told = names[error.param], error.message
        if told.startswith(f"{error.param}:"):
            told = f"{param}{told.removeprefix(error.param)}"
        raise InvalidRequest(told, param) from error
    except RequestValidationError as error:
        raise RequestValidationError([_renamed(fault, names) for fault in error.errors()]) from error


def _renamed(fault: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    head, *path = fault["loc"]
    fault = {**fault, "loc": (head, *(names.get(step, step) for step in path))}
    if isinstance(error := fault.get("ctx", {}).get("error"), FieldError):
        fault["ctx"] = {"error": FieldError(names.get(error.field, error.field), str(error))}
    return fault


def own_or_invalid(request: type[GenerateRequest], **fields: Any) -> GenerateRequest:
    """Return a request of this service from fields of another API. Raises RequestValidationError."""
    try:
        return request(**fields)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from error


def translated(request: type[GenerateRequest], model: ModelConfig, size_param: str, **fields: Any) -> GenerateRequest:
    """Return a request of another API as one of this service. Raises InvalidRequest or RequestValidationError.

    Borrowed fields are already within bounds; the size is checked here, and errors call it `size_param`.
    """
    try:
        return own_or_invalid(request, **fields)
    except RequestValidationError as error:
        if any(fault["loc"][1:] in (("width",), ("height",)) for fault in error.errors()):
            size = f"{fields['width']}x{fields['height']}"
            raise InvalidRequest(
                f"{size_param}: {size} is not served; width and height must be {sizes(model)}", size_param
            ) from error
        raise
