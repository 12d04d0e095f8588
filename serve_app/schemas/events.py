"""The server-sent events of a stream, in the order in which they may come."""

from typing import Literal

from serve_app.schemas.answers import Answer, ErrorBody, ErrorDetail, Grid, Parameters, Picture, Timings


class StartEvent(Answer):
    """First event of a stream, before any step is computed."""

    type: Literal["start"] = "start"
    id: str
    seeds: list[int]
    parameters: Parameters
    warnings: list[str]


class QueuedEvent(Answer):
    """The image waits; `position` 1 is next in line."""

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
    """The picture as predicted after `step` of the steps."""

    type: Literal["preview"] = "preview"
    index: int
    seed: int
    step: int
    num_inference_steps: int
    width: int
    height: int
    media_type: str
    b64_json: str


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
    """Last event of a stream with an image, or with all cancelled; `warnings` holds those since the start event."""

    type: Literal["completed"] = "completed"
    id: str
    timings: Timings
    warnings: list[str]


class ErrorEvent(ErrorBody):
    """Last event of a stream that failed: without a single image, and not because all were cancelled."""

    type: Literal["error"] = "error"


Event = (
    StartEvent
    | QueuedEvent
    | ProgressEvent
    | PreviewEvent
    | ImageEvent
    | FailedEvent
    | CancelledEvent
    | GridEvent
    | CompletedEvent
    | ErrorEvent
)
