"""The OpenAI Images API as this service implements it: bodies, answers, events and errors.

Its SDKs pass on our additional fields: `image_index`, `seed`, `step`, `model`, `failure`, `warnings`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from serve_app.ingress.requests import ForeignRequest
from serve_app.recipe import OutputFormat
from serve_app.schemas import Answer, ErrorDetail, FieldError, OtherModel, ResponseFormat

_NO_EFFECT = "Accepted, but has no effect."


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
        default="auto", description=_NO_EFFECT
    )
    style: Literal["vivid", "natural"] | None = Field(default=None, description=_NO_EFFECT)
    moderation: Literal["auto", "low"] = Field(default="auto", description=_NO_EFFECT)
    user: str | None = Field(default=None, description=_NO_EFFECT)
    safety_identifier: str | None = Field(default=None, description=_NO_EFFECT)
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


class _ImageEvent(Answer):
    """The fields that partial and finished images share."""

    background: Literal["opaque"] = "opaque"
    created_at: int = Field(description="Unix time in seconds.")
    output_format: OutputFormat
    quality: Literal["auto"] = "auto"
    size: str = Field(description="Size of the finished image; a partial image may be smaller.")
    image_index: int
    seed: int
    step: int


class PartialImageEvent(_ImageEvent):
    """The picture predicted after `step` steps; always a JPEG."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    b64_json: str
    partial_image_index: int


class CompletedEvent(_ImageEvent):
    """A finished image, in `b64_json` or at `url`. There is one for each image that did not fail."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    b64_json: str | None = None
    url: str | None = None
    model: OtherModel = None
    warnings: list[str] = Field(description="Warnings about the whole request that are known at its start.")


class FailedEvent(Answer):
    """This image failed or was cancelled; the others go on."""

    # Not `error`: the SDK would raise and lose the other images.
    type: Literal["image_generation.failed"] = "image_generation.failed"
    image_index: int
    seed: int
    failure: ErrorDetail


class WarningsEvent(Answer):
    """Warnings since the start, such as that the model reads less of the prompt; after the images, if there are any."""

    type: Literal["image_generation.warnings"] = "image_generation.warnings"
    warnings: list[str]


class OpenAIError(Answer):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class OpenAIErrorBody(Answer):
    error: OpenAIError


class ErrorEvent(OpenAIErrorBody):
    """The end of a stream that gave no image; the SDK raises it."""

    type: Literal["error"] = "error"


class ModelCard(Answer):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Always 0: not known for weights.")
    owned_by: Literal["parallel-sdxl"] = "parallel-sdxl"


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[ModelCard]
