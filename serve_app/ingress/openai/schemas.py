"""The OpenAI Images API as this service speaks it: bodies, answers, events and errors.

What OpenAI does not have, its SDKs let through: `image_index`, `seed`, `step`, `failure`, `warnings`.
"""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from serve_app.ingress.requests import ForeignRequest
from serve_app.recipe import OutputFormat
from serve_app.schemas import Answer, ErrorDetail, FieldError, ResponseFormat

_NO_EFFECT = "Accepted, without effect."


class ImagesRequest(ForeignRequest):
    """The body of `POST /v1/images/generations`. A null is the default.

    `serve_app.ingress.openai.requests` derives the class: it has the recipe's settings too, and fields without a
    default here become `GenerateRequest`'s.
    """

    prompt: str
    model: str | None = Field(
        default=None,
        description="The served model's name or path; `gpt-image-*`, `chatgpt-image-*` and `dall-e-*` stand for it "
        "too, also after `openai/`. Empty: the same as none.",
    )
    n: int
    size: str
    response_format: ResponseFormat | None = Field(
        default=None,
        description="How finished images come; `url` needs the service's option files.path. Null: `b64_json`, but "
        "`url` for a `dall-e-*` without stream, where there is that option.",
    )
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    partial_images: int = Field(
        default=0, ge=0, le=3, description="Previews of each image, spread evenly over its steps; needs stream."
    )
    background: Literal["auto", "opaque", "transparent"] = Field(
        default="auto", description="Pictures are opaque: `transparent` is refused."
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
        if self.background == "transparent":
            raise FieldError("background", "transparent is not supported: the picture would be opaque")
        if self.partial_images and not self.stream:
            raise FieldError("partial_images", "needs stream: true")
        if self.seeds is not None and "n" in self.model_fields_set and self.n != len(self.seeds):
            raise FieldError("n", "must be the number of seeds where they are given; it may be left out")
        return self


class ImageItem(Answer):
    """One image: in `b64_json` or, if asked for, at `url`; neither and a `failure` where there is none."""

    b64_json: str | None = None
    url: str | None = None
    image_index: int
    seed: int
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
    """What both kinds of picture say of themselves."""

    background: Literal["opaque"] = "opaque"
    created_at: int = Field(description="Unix time in seconds.")
    output_format: OutputFormat
    quality: Literal["auto"] = "auto"
    size: str = Field(description="Of the finished image; the file of a partial image may be smaller.")
    image_index: int
    seed: int
    step: int


class PartialImageEvent(_ImageEvent):
    """The picture as predicted after `step` of the steps; always a JPEG."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    b64_json: str
    partial_image_index: int


class CompletedEvent(_ImageEvent):
    """A finished image, in `b64_json` or at `url`; there are as many as images asked for, less those that failed."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    b64_json: str | None = None
    url: str | None = None
    warnings: list[str] = Field(description="Of the whole request, as in an answer that is not a stream.")


class FailedEvent(Answer):
    """This image failed or was cancelled; the others go on."""

    # Not `error`: at that the SDK would raise and lose the others.
    type: Literal["image_generation.failed"] = "image_generation.failed"
    image_index: int
    seed: int
    failure: ErrorDetail


class OpenAIError(Answer):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class OpenAIErrorBody(Answer):
    error: OpenAIError


class ErrorEvent(OpenAIErrorBody):
    """The end of a stream without a single image; the SDK raises it."""

    type: Literal["error"] = "error"


class ModelCard(Answer):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Not known of weights: 0.")
    owned_by: Literal["parallel-sdxl"] = "parallel-sdxl"


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[ModelCard]
