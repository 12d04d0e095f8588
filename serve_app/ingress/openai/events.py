"""The server-sent events of the OpenAI Images API: those of generations and, under other names, those of edits."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from serve_app.ingress.openai.schemas import OpenAIErrorBody
from serve_app.recipe import OutputFormat
from serve_app.schemas import Answer, ErrorDetail, OtherModel, Variations


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


class _PartialImage(_ImageEvent):
    b64_json: str
    partial_image_index: int


class _Completed(_ImageEvent):
    b64_json: str | None = None
    url: str | None = None
    variations: Variations = ()
    model: OtherModel = None
    warnings: list[str] = Field(description="Warnings about the whole request that are known at its start.")


class _Failed(Answer):
    # Not `error`: the SDK would raise and lose the other images.
    image_index: int
    seed: int
    failure: ErrorDetail


class _Warnings(Answer):
    warnings: list[str]


class PartialImageEvent(_PartialImage):
    """The picture predicted after `step` steps; always a JPEG."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"


class CompletedEvent(_Completed):
    """A finished image, in `b64_json` or at `url`. There is one for each image that did not fail."""

    type: Literal["image_generation.completed"] = "image_generation.completed"


class FailedEvent(_Failed):
    """This image failed or was cancelled; the others go on."""

    type: Literal["image_generation.failed"] = "image_generation.failed"


class WarningsEvent(_Warnings):
    """Warnings since the start, such as that the model reads less of the prompt; after the images, if there are any."""

    type: Literal["image_generation.warnings"] = "image_generation.warnings"


class EditPartialImageEvent(_PartialImage):
    """The picture predicted after `step` steps; always a JPEG."""

    type: Literal["image_edit.partial_image"] = "image_edit.partial_image"


class EditCompletedEvent(_Completed):
    """A finished image, in `b64_json` or at `url`. There is one for each image that did not fail."""

    type: Literal["image_edit.completed"] = "image_edit.completed"


class EditFailedEvent(_Failed):
    """This image failed or was cancelled; the others go on."""

    type: Literal["image_edit.failed"] = "image_edit.failed"


class EditWarningsEvent(_Warnings):
    """Warnings since the start, such as that the model reads less of the prompt; after the images, if there are any."""

    type: Literal["image_edit.warnings"] = "image_edit.warnings"


class ErrorEvent(OpenAIErrorBody):
    """The end of a stream that gave no image; the SDK raises it."""

    type: Literal["error"] = "error"


ImageEvent = (
    PartialImageEvent
    | CompletedEvent
    | FailedEvent
    | WarningsEvent
    | EditPartialImageEvent
    | EditCompletedEvent
    | EditFailedEvent
    | EditWarningsEvent
    | ErrorEvent
)


@dataclass(frozen=True, slots=True)
class Kinds:
    """The events of one kind of request."""

    partial: type[PartialImageEvent] | type[EditPartialImageEvent]
    completed: type[CompletedEvent] | type[EditCompletedEvent]
    failed: type[FailedEvent] | type[EditFailedEvent]
    warnings: type[WarningsEvent] | type[EditWarningsEvent]

    @property
    def all(self) -> tuple[type[ImageEvent], ...]:
        return (self.partial, self.completed, self.failed, self.warnings, ErrorEvent)


GENERATION = Kinds(PartialImageEvent, CompletedEvent, FailedEvent, WarningsEvent)
EDIT = Kinds(EditPartialImageEvent, EditCompletedEvent, EditFailedEvent, EditWarningsEvent)
