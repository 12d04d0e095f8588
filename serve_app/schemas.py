"""The HTTP contract: request bodies, answers and server-sent events. No Ray, no torch."""

import json
from collections.abc import Mapping
from math import ceil, sqrt
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.recipe import LONGEST_TEXT, SEED_SPAN, FirstSeed, Output, OutputFormat, Recipe, SchedulerName, Seed

PredictionType = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]
ResponseFormat = Literal["b64_json", "url"]

_LONGEST_SIDES: Mapping[OutputFormat, int] = {"webp": 16383, "jpeg": 65500, "png": 2**31 - 1}
"""What the file formats hold, in pixels."""
_BOUNDS = {"default", "minimum", "maximum", "multipleOf", "minLength", "maxLength"}
_OTHER_FIELDS = 1024
"""Bytes, more than all fields take that are neither texts nor lists."""


def can_be_key(text: str) -> bool:
    """Whether an Authorization header carries this as an API key: visible ASCII characters alone."""
    return text.isascii() and text.isprintable() and " " not in text


def longest_body(max_images: int, max_steps: int) -> int:
    """Return how many bytes the longest request has that these limits allow."""
    text = "\U0001f34e" * LONGEST_TEXT  # twelve bytes each, where a client escapes all but ASCII, as Python's do
    seeds, steps = [SEED_SPAN - 1] * max_images, list(range(1, max_steps))
    fields = {"prompt": text, "negative_prompt": text, "seeds": seeds, "preview_steps": steps}
    return len(json.dumps(fields)) + _OTHER_FIELDS


def sheet_cells(images: int) -> tuple[int, int]:
    """Return the columns and rows of the contact sheet of so many images."""
    columns = ceil(sqrt(images))
    return columns, ceil(images / columns)


class FieldError(ValueError):
    """A field is wrong in the light of others; pydantic itself would blame the body as a whole."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class GenerateRequest(Output, Recipe):
    """The body of `POST /generate` and `POST /stream`.

    These are the outer bounds; `serve_app.ingress.requests` derives a class with the service's limits and defaults.
    """

    num_images: int = Field(default=4, ge=1, description="How many images, each with a seed of its own.")
    seed: FirstSeed | None = Field(
        default=None,
        description="Seed of the first image; image i gets seed + i modulo 2^32. Random where null or -1.",
    )
    seeds: list[Seed] | None = Field(
        default=None, min_length=1, description="The distinct seeds to generate, instead of seed and num_images."
    )
    response_format: ResponseFormat = Field(
        default="b64_json",
        description="How images and the grid come: as base64 text, or at a `url`, which needs the option files.path.",
    )
    preview_every: int = Field(
        default=5,
        ge=0,
        le=100,
        description="A preview after step 1 and after every such step, never after the last; 0: none.",
    )
    preview_steps: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None,
        max_length=1000,
        description="Previews after exactly these steps, instead of preview_every; empty: none.",
    )
    grid: bool = Field(default=False, description="Also return one contact sheet of all images.")

    @model_validator(mode="after")
    def _one_way_to_name_seeds(self) -> Self:
        if self.seeds is None:
            return self
        if self.seed is not None:
            raise FieldError("seeds", "give either seed or seeds, not both")
        if "num_images" in self.model_fields_set:
            raise FieldError("seeds", "give either num_images or seeds, not both: each seed is one image")
        if len(set(self.seeds)) != len(self.seeds):
            raise FieldError("seeds", "must be distinct")
        return self

    @model_validator(mode="after")
    def _one_way_to_name_previews(self) -> Self:
        if self.preview_steps is None:
            return self
        if "preview_every" in self.model_fields_set:
            raise FieldError("preview_steps", "give either preview_every or preview_steps, not both")
        if max(self.preview_steps, default=0) >= self.num_inference_steps:
            raise FieldError(
                "preview_steps",
                f"each must be below num_inference_steps ({self.num_inference_steps}): "
                "after the last step comes the image",
            )
        return self

    @model_validator(mode="after")
    def _fits_its_files(self) -> Self:
        columns, rows = sheet_cells(len(self.seeds) if self.seeds else self.num_images) if self.grid else (1, 1)
        longest, most = max(columns * self.width, rows * self.height), _LONGEST_SIDES[self.output_format]
        if longest > most:
            what = f"the {'grid' if self.grid else 'picture'} would be {longest} pixels long"
            raise FieldError("output_format", f"{what}, {self.output_format} holds {most}; ask for png")
        return self


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelInfo(Answer):
    """Which weights generated a picture, and how they are sampled."""

    name: str
    revision: str | None = Field(description="Commit or tag of a hub checkpoint.")
    hash: str = Field(
        description="First 10 hex digits of a SHA-256 over the weights, configs and settings that pictures depend on; "
        "of a single file with diffusers' usual configs, the file's own."
    )
    prediction_type: PredictionType | None = Field(default=None, description="What the UNet predicts.")
    timestep_spacing: TimestepSpacing | None = Field(
        default=None, description="How the steps lie among the timesteps. Null, as below: the scheduler's default."
    )
    rescale_betas_zero_snr: bool | None = Field(default=None, description="Whether the last timestep is all noise.")


def _without_bounds(schema: dict[str, Any]) -> None:
    """Take out of an answer's schema what concerns requests alone."""
    for field in schema["properties"].values():
        for kind in (field, *field.get("anyOf", ())):
            for bound in _BOUNDS & kind.keys():
                del kind[bound]


class Parameters(Output, Recipe):
    """Every setting that took effect; with a seed, enough to generate an image again."""

    # Of a newer service there may be more.
    model_config = ConfigDict(
        extra="ignore", json_schema_extra=_without_bounds, json_schema_serialization_defaults_required=True
    )

    scheduler: SchedulerName
    model: ModelInfo


class ErrorDetail(Answer):
    type: str
    message: str


class Picture(Answer):
    """An image of a request that succeeded."""

    index: int
    seed: int
    status: Literal["succeeded"] = "succeeded"
    width: int
    height: int
    media_type: str
    b64_json: str


class NoPicture(Answer):
    """An image of a request that ended without a picture, and why."""

    index: int
    seed: int
    status: Literal["failed", "cancelled"]
    error: ErrorDetail


Image = Picture | NoPicture


class Grid(Answer):
    """All images on one sheet: row-major, ceil(sqrt(n)) columns, failed cells grey."""

    width: int
    height: int
    media_type: str
    b64_json: str


class Timings(Answer):
    """Seconds. `total` is the whole request; the rest is where the image that came last spent it, 0 where none came."""

    queue: float
    encode_prompt: float
    denoise: float
    decode: float
    encode: float
    total: float


class Result(Answer):
    """What every answer of `POST /generate` holds besides the images."""

    id: str
    created: int = Field(description="Unix time in seconds.")
    parameters: Parameters
    timings: Timings
    warnings: list[str]


class BatchResult(Result):
    """The answer of `POST /generate`."""

    images: list[Image]
    grid: Grid | None


class Cancelled(Answer):
    """The answer of `DELETE /generations/{id}`: which of the images asked for are cancelled, now or before."""

    id: str
    cancelled: list[int]


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


class Problem(Answer):
    """What every error body holds under `error`."""

    type: str
    message: str
    param: str | None = None


class ErrorBody(Answer):
    error: Problem


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


class ReplicaCount(Answer):
    ready: int
    target: int


class Health(Answer):
    """The answer of `GET /health`; 200 when ready, 503 while starting."""

    status: Literal["ready", "starting"]
    replicas: ReplicaCount
    version: str


class ServiceStatus(Answer):
    """The answer of `GET /status`, at most a second old."""

    replicas: ReplicaCount
    images_in_flight: int
    images_waiting: int
    images_per_second: float = Field(description="Images finished by all replicas, over the last minute.")
