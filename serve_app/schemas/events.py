"""The server-sent events of a stream, roughly in order of appearance."""

from typing import Literal

from pydantic import Field

from serve_app.schemas.answers import (
    Answer,
    ErrorBody,
    ErrorDetail,
    GpuSeconds,
    Grid,
    OwnParameters,
    Parameters,
    Picture,
    Timings,
    Variations,
)


class StartEvent(Answer):
    """The first event of a stream, sent before any step."""

    type: Literal["start"] = "start"
    id: str
    seeds: list[int]
    variations: list[Variations] = Field(default=[], description="Those of each image; empty if none has any.")
    parameters: Parameters
    warnings: list[str]


class QueuedEvent(Answer):
    """The image is queued; `position` 1 is next."""

    type: Literal["queued"] = "queued"
    index: int
    position: int


class ProgressEvent(Answer):
    type: Literal["progress"] = "progress"
    index: int
    seed: int
    step: int
    num_inference_steps: int


class PreviewEvent(Answer):
    """The picture predicted after `step` steps."""

    type: Literal["preview"] = "preview"
    index: int
    seed: int
    step: int
    num_inference_steps: int
    width: int
    height: int
    media_type: str
    b64_json: str


class PausedEvent(Answer):
    """The image has stopped after `pause_after` or `keep.at_step` steps; the picture predicted then.

    It goes on when it is resumed, or when `keep` chooses it.
    """

    type: Literal["paused"] = "paused"
    index: int
    seed: int
    step: int
    num_inference_steps: int
    width: int
    height: int
    media_type: str
    b64_json: str
    expires_at: float | None = Field(
        description="Until when it can be resumed, as Unix time in seconds. Null with `keep`: it waits for the others."
    )
    gpu_seconds: GpuSeconds = 0
    score: float | None = Field(
        default=None, description="What `keep.by` says of it, more being better; null if it says nothing."
    )


class ResumedEvent(Answer):
    """The image is queued again, to go on after `step` steps."""

    type: Literal["resumed"] = "resumed"
    index: int
    seed: int
    step: int
    num_inference_steps: int
    parameters: OwnParameters = None


class ImageEvent(Picture):
    type: Literal["image"] = "image"


class FailedEvent(Answer):
    type: Literal["failed"] = "failed"
    index: int
    seed: int
    error: ErrorDetail


class CancelledEvent(Answer):
    type: Literal["cancelled"] = "cancelled"
    index: int
    seed: int
    error: ErrorDetail


class GridEvent(Grid):
    type: Literal["grid"] = "grid"


class CompletedEvent(Answer):
    """The last event of a stream that gave an image, or whose images were all cancelled.

    `warnings` are those since the start event.
    """

    type: Literal["completed"] = "completed"
    id: str
    timings: Timings
    warnings: list[str]


class ErrorEvent(ErrorBody):
    """The last event of a stream that gave no image, unless all images were cancelled."""

    type: Literal["error"] = "error"


Event = (
    StartEvent
    | QueuedEvent
    | ProgressEvent
    | PreviewEvent
    | PausedEvent
    | ResumedEvent
    | ImageEvent
    | FailedEvent
    | CancelledEvent
    | GridEvent
    | CompletedEvent
    | ErrorEvent
)
