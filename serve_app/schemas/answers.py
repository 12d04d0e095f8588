"""What the service answers with, and the parts that events share with answers."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.recipe import Output, Recipe, SchedulerName

PredictionType = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]

_BOUNDS = {"default", "minimum", "maximum", "multipleOf", "minLength", "maxLength"}


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelInfo(Answer):
    """The weights that generated a picture, and how they are sampled."""

    name: str
    revision: str | None = Field(description="Commit or tag of a hub checkpoint.")
    hash: str = Field(
        description="First 10 hex digits of the SHA-256 over the weights, configs and settings that pictures depend "
        "on. For a single file with diffusers' usual configs: of the file itself."
    )
    prediction_type: PredictionType | None = Field(default=None, description="What the UNet predicts.")
    timestep_spacing: TimestepSpacing | None = Field(
        default=None, description="How steps are spaced over the timesteps. Null: the scheduler's default."
    )
    rescale_betas_zero_snr: bool | None = Field(
        default=None, description="Whether the last timestep is pure noise. Null: the scheduler's default."
    )


def _without_bounds(schema: dict[str, Any]) -> None:
    """Remove from an answer's schema what only applies to requests."""
    for field in schema["properties"].values():
        for kind in (field, *field.get("anyOf", ())):
            for bound in _BOUNDS & kind.keys():
                del kind[bound]


class Parameters(Output, Recipe):
    """Every setting in effect; together with a seed, enough to generate an image again."""

    # Extra fields are ignored: a newer service may send more.
    model_config = ConfigDict(
        extra="ignore", json_schema_extra=_without_bounds, json_schema_serialization_defaults_required=True
    )

    scheduler: SchedulerName
    model: ModelInfo


class ErrorDetail(Answer):
    type: str
    message: str


class Picture(Answer):
    """An image that was generated."""

    index: int
    seed: int
    status: Literal["succeeded"] = "succeeded"
    width: int
    height: int
    media_type: str
    b64_json: str


class NoPicture(Answer):
    """An image that failed or was cancelled, and why."""

    index: int
    seed: int
    status: Literal["failed", "cancelled"]
    error: ErrorDetail


Image = Picture | NoPicture


class Grid(Answer):
    """All images on one sheet: row-major, ceil(sqrt(n)) columns, missing images grey."""

    width: int
    height: int
    media_type: str
    b64_json: str


class Timings(Answer):
    """Seconds. `total` is the whole request; the others are those of the last image, 0 if none was generated."""

    queue: float
    encode_prompt: float
    denoise: float
    decode: float
    encode: float
    total: float


class Result(Answer):
    """The part of an answer of `POST /generate` besides the images."""

    id: str
    created: int = Field(description="Unix time in seconds.")
    parameters: Parameters
    timings: Timings
    warnings: list[str]


class BatchResult(Result):
    """The answer of `POST /generate`."""

    images: list[Image]
    grid: Grid | None


class ImageState(Answer):
    """How far an image is."""

    index: int
    seed: int
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]


class UnfinishedResult(Answer):
    """The answer of `GET /generations/{id}` while images are still to come."""

    id: str
    created: int = Field(description="Unix time in seconds.")
    parameters: Parameters
    warnings: list[str]
    images: list[ImageState]


class Cancelled(Answer):
    """The answer of `DELETE /generations/{id}`: which of these images are cancelled, now or earlier."""

    id: str
    cancelled: list[int]


class Problem(Answer):
    """The content of `error` in an error body."""

    type: str
    message: str
    param: str | None = None


class ErrorBody(Answer):
    error: Problem


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
    images_per_second: float = Field(description="Images per second of all replicas, over the last minute.")
