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


class Problem(Answer):
    """What every error body holds under `error`."""

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
    images_per_second: float = Field(description="Images finished by all replicas, over the last minute.")
