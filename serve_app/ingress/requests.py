"""The request classes of one service: with this service's limits and defaults in them."""

from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError, create_model, model_validator

from serve_app.config import AppArgs, ModelConfig
from serve_app.errors import InvalidRequest
from serve_app.schemas import Body, GenerateRequest, Seed


class ForeignRequest(Body):
    """A request body of another API: strict, as the service's own, but a null is the default."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body


def request_model(args: AppArgs) -> type[GenerateRequest]:
    """Return the class to validate bodies with, so that OpenAPI shows the very numbers that bad input is refused by."""
    limits, model = args.limits, args.model

    def like(name: str, annotation: Any, **changes: Any) -> tuple[Any, Any]:
        return annotation, Field(description=GenerateRequest.model_fields[name].description, **changes)

    side: dict[str, Any] = {"ge": model.min_size, "le": model.max_size, "multiple_of": 8}
    fields: dict[str, Any] = {
        "num_images": like("num_images", int, default=min(4, limits.max_images), ge=1, le=limits.max_images),
        "seeds": like("seeds", list[Seed] | None, default=None, min_length=1, max_length=limits.max_images),
        "width": like("width", int, default=model.width, **side),
        "height": like("height", int, default=model.height, **side),
        "num_inference_steps": like(
            "num_inference_steps", int, default=model.num_inference_steps, ge=1, le=limits.max_steps
        ),
        "guidance_scale": like("guidance_scale", float, default=model.guidance_scale, ge=0, le=30, allow_inf_nan=False),
    }
    return create_model("GenerateRequest", __base__=GenerateRequest, __doc__=GenerateRequest.__doc__, **fields)


def borrowed(request: type[GenerateRequest], name: str, **changes: Any) -> Any:
    """Return a field of a service's requests with its bounds, for the request class of another API.

    `changes` are as `Field` takes them.
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
    """Return in words which widths and heights are served."""
    return f"multiples of 8 from {model.min_size} to {model.max_size}"


def translated(request: type[GenerateRequest], model: ModelConfig, size_param: str, **fields: Any) -> GenerateRequest:
    """Return a request of another API as one of this service. Raises InvalidRequest or RequestValidationError.

    The fields it has borrowed have passed these bounds before; the size has not, and is called `size_param` there.
    """
    try:
        return request(**fields)
    except ValidationError as error:
        faults = error.errors()
        if any(fault["loc"][:1] in (("width",), ("height",)) for fault in faults):
            size = f"{fields['width']}x{fields['height']}"
            raise InvalidRequest(
                f"{size_param}: {size} is not served; width and height must be {sizes(model)}", size_param
            ) from error
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from error
