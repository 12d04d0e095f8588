"""The OpenAI Images API as this service implements it: bodies, answers, events and errors.

Its SDKs pass on our additional fields: `image_index`, `seed`, `variations`, `step`, `model`, `failure`, `warnings`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from serve_app.ingress.requests import ForeignRequest
from serve_app.recipe import OutputFormat
from serve_app.schemas import Answer, ErrorDetail, FieldError, OtherModel, ResponseFormat, Variations

NO_EFFECT = "Accepted, but has no effect."


def _opaque(background: Any) -> Any:
    if background == "transparent":
        raise ValueError("transparent is not supported: pictures are opaque")
    return background


class ImagesRequest(ForeignRequest):
    """The body of `POST /v1/images/generations`. Null means the default.

    `serve_app.ingress.openai.requests` derives the class that is used: it adds the recipe's settings, and fields
    without a default here get `GenerateRequest`'s.
    """

    prompt: str
    model: str | None = Field(
        default=None,
        description="The served model's name or path. `gpt-image-*`, `chatgpt-image-*` and `dall-e-*` mean the served "
        "model too, also with the prefix `openai/`. Empty is the same as null.",
    )
    n: int
    size: str
    response_format: ResponseFormat | None = Field(
        default=None,
        description="Format of finished images; `url` needs the service's option files.path. Null: `url` for a "
        "`dall-e-*` without stream if that option is set, else `b64_json`.",
    )
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    partial_images: int = Field(
        default=0, ge=0, le=3, description="Number of previews per image, spread evenly over its steps; needs stream."
    )
    background: Annotated[Literal["auto", "opaque"], BeforeValidator(_opaque)] = Field(
        default="auto", description="`transparent` is refused: pictures are opaque."
    )
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] = Field(
        default="auto", description=NO_EFFECT
    )
    style: Literal["vivid", "natural"] | None = Field(default=None, description=NO_EFFECT)
    moderation: Literal["auto", "low"] = Field(default="auto", description=NO_EFFECT)
    user: str | None = Field(default=None, description=NO_EFFECT)
    safety_identifier: str | None = Field(default=None, description=NO_EFFECT)
    seeds: list[int] | None
    num_inference_steps: int

    @field_validator("model")
    @classmethod
    def _empty_is_none(cls, model: str | None) -> str | None:
        return (model or "").strip() or None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.partial_images and not self.stream:
            raise FieldError("partial_images", "needs stream: true")
        if self.seeds is not None and "n" in self.model_fields_set and self.n != len(self.seeds):
            raise FieldError("n", "must equal the number of seeds, or be left out")
        return self


class ImageItem(Answer):
    """One image in `b64_json`, or at `url` if asked for; or the `failure` if it is missing."""

    b64_json: str | None = None
    url: str | None = None
    image_index: int
    seed: int
    variations: Variations = ()
    model: OtherModel = None
    failure: ErrorDetail | None = None


class ImagesResponse(Answer):
    created: int = Field(description="Unix time in seconds.")
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: Literal["auto"] = "auto"
    size: str
    warnings: list[str]
    data: list[ImageItem]


class OpenAIError(Answer):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class OpenAIErrorBody(Answer):
    error: OpenAIError


class ModelCard(Answer):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Always 0: not known for weights.")
    owned_by: Literal["parallel-sdxl"] = "parallel-sdxl"


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[ModelCard]
