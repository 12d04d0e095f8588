"""The request class of one service: `GenerateRequest` with this service's limits and defaults in it."""

from typing import Any

from pydantic import Field, create_model

from serve_app.config import AppArgs
from serve_app.schemas import GenerateRequest, Seed


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
        "num_inference_steps": like("num_inference_steps", int, default=model.num_inference_steps, ge=1, le=limits.max_steps),
        "guidance_scale": like("guidance_scale", float, default=model.guidance_scale, ge=0, le=30, allow_inf_nan=False),
    }
    return create_model("GenerateRequest", __base__=GenerateRequest, __doc__=GenerateRequest.__doc__, **fields)
