"""The service's configuration: the `args` of a Serve YAML, or `key=value` of `serve run serve_app.app:build`.

Unknown keys are errors: Serve itself would silently drop them.
"""

from collections.abc import Mapping, Set
from os.path import normpath
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from serve_app.config.adapters import AdaptersConfig
from serve_app.config.base import Config
from serve_app.config.engine import Compile, EngineConfig, PreviewConfig, Quantization
from serve_app.config.live import (
    A1111Config,
    AdmissionConfig,
    AuthConfig,
    CorsConfig,
    FilesConfig,
    LimitsConfig,
    LiveSettings,
    PicturesConfig,
    StreamsConfig,
    TrajectoriesConfig,
)
from serve_app.config.model import ModelConfig
from serve_app.config.models import MODELS, ONLY_MODEL, ModelName, merged, own_settings
from serve_app.config.scaling import ScalingConfig
from serve_app.models import EMBEDDED
from serve_app.schemas import longest_body
from serve_app.setting_types import Share

__all__ = [
    "ONLY_MODEL",
    "A1111Config",
    "AdaptersConfig",
    "AdmissionConfig",
    "AppArgs",
    "AuthConfig",
    "Compile",
    "Config",
    "CorsConfig",
    "EngineConfig",
    "FilesConfig",
    "LimitsConfig",
    "LiveSettings",
    "ModelConfig",
    "PicturesConfig",
    "PreviewConfig",
    "Quantization",
    "ScalingConfig",
    "StreamsConfig",
    "TrajectoriesConfig",
]


def _live(changes: Any, path: str, known: Set[str]) -> Mapping[str, Any]:
    """Return changes of settings that can change in a run. Raises ValueError if others are among them."""
    if not isinstance(changes, Mapping):
        raise ValueError(f"user_config: {path.rstrip('.')} must be a mapping of settings")
    if fixed := sorted(changes.keys() - known):
        words = ", ".join(sorted(known))
        raise ValueError(f"user_config: {path}{fixed[0]} is not one of the settings that can change in a run: {words}")
    return changes


def _lies_in(path: str, folder: str) -> bool:
    return Path(normpath(path)).is_relative_to(normpath(folder))


class AppArgs(LiveSettings):
    """All settings of the service: the builder's arguments."""

    num_replicas: int = Field(default=2, ge=1, description="Number of SDXL replicas, each on one GPU or on the CPU.")
    scaling: ScalingConfig | None = Field(
        default=None, description="Null: there are always `num_replicas`. Else it is how many there are at first."
    )
    num_gpus: Share = Field(
        default=0, ge=0, le=1, description="GPUs per replica: 1; 0 for the CPU; 0.5 lets two replicas share a GPU."
    )
    num_cpus: Share = Field(
        default=1,
        ge=0,
        allow_inf_nan=False,
        description="CPU cores per replica; without a GPU also its number of torch threads.",
    )
    ingress_replicas: int = Field(default=1, ge=1, description="Number of HTTP ingress replicas.")
    request_timeout_s: float = Field(
        default=300.0,
        ge=1,
        description="Longest time for a request, which may set a shorter `timeout_s`; the images finished by then are "
        "returned.",
    )
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    preview: PreviewConfig = PreviewConfig()
    adapters: AdaptersConfig = AdaptersConfig()
    models: Mapping[ModelName, Mapping[str, Any]] = Field(default={}, description=MODELS)
    default_model: str | None = Field(
        default=None, description="Which of several `models` a request means that names none."
    )

    @property
    def served(self) -> dict[str, Self]:
        """The settings of each model by its name, the default first; a service of one has its only one as ONLY_MODEL.

        Raises ValueError.
        """
        if not self.models:
            return {ONLY_MODEL: self}
        values = self.model_dump(exclude_unset=True, exclude={"models", "default_model"})
        served = {name: self._of_model(name, own_settings(name, values, own)) for name, own in self.models.items()}
        default = self.default_model or next(iter(served))
        return {default: served[default], **served}

    def _of_model(self, name: str, settings: Mapping[str, Any]) -> Self:
        try:
            return self.model_validate(settings)
        except ValidationError as error:
            fault = error.errors()[0]
            where, message = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
            field = f"models.{name}" if message.startswith(f"{where}.") or not where else f"models.{name}.{where}"
            raise ValueError(f"{field}: {message}") from error

    @property
    def max_body_bytes(self) -> int:
        """The largest body that any of the models takes: it is read before it is known which one it is for."""
        return max(own.limits.max_body_bytes for own in self.served.values())

    def changed(self, live: Mapping[str, Any]) -> Self:
        """Return these settings with others of `LiveSettings`, section by section; also of `models`. Raises ValueError.

        What is set for a model goes before what is set for all, whichever was set later.
        """
        values = merged(self.model_dump(exclude_unset=True), _live(live, "", {*LiveSettings.model_fields, "models"}))
        if "models" in live:
            values["models"] = {**self.models}
            for name, own in _live(live["models"], "models.", self.models.keys()).items():
                changes = _live(own, f"models.{name}.", LiveSettings.model_fields.keys())
                values["models"][name] = merged(self.models[name], changes)
        return self.model_validate(values)

    @property
    def may_sleep(self) -> bool:
        """Whether there may be no replicas while nobody asks for images."""
        return self.scaling is not None and self.scaling.min_replicas == 0

    @property
    def warm_up_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of all sizes to warm up at the start, the default first."""
        others = tuple(
            (int(width), int(height)) for width, height in (size.split("x") for size in self.engine.warm_up_sizes)
        )
        return tuple(dict.fromkeys(((self.model.width, self.model.height), *others)))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.models:  # each is seen to with its own settings
            return self
        if self.model.num_inference_steps > self.limits.max_steps:
            raise ValueError("model.num_inference_steps must not be above limits.max_steps")
        for width, height in self.warm_up_sizes:
            if not all(
                self.model.min_size <= side <= self.model.max_size and side % 8 == 0 for side in (width, height)
            ):
                raise ValueError(
                    f"engine.warm_up_sizes: the sides of {width}x{height} must be multiples of 8 "
                    f"between model.min_size ({self.model.min_size}) and model.max_size ({self.model.max_size})"
                )
        if self.admission.max_waiting_images < self.limits.max_images:
            raise ValueError(
                "admission.max_waiting_images must be at least limits.max_images, "
                "or the largest request could never be admitted"
            )
        given, needed = self.limits.max_body_bytes, longest_body(self.limits.max_images, self.limits.max_steps)
        if given < needed:
            raise ValueError(
                f"limits.max_body_bytes ({given}) must be at least {needed}, or the largest request without `before` "
                "could not be sent"
            )
        if (scaling := self.scaling) is not None:
            least, most = scaling.min_replicas, scaling.max_replicas
            if not least <= self.num_replicas <= most:
                raise ValueError(
                    f"num_replicas ({self.num_replicas}) must lie between scaling.min_replicas ({least}) "
                    f"and scaling.max_replicas ({most})"
                )
        if self.adapters.path == EMBEDDED != self.model.path:
            raise ValueError(
                f"adapters.path: {EMBEDDED} goes only with model.path: {EMBEDDED}: "
                "LoRAs fit the model that they were made for"
            )
        if self.engine.quantization == "fp8" and self.num_gpus > 0 and self.model.dtype == "float32":
            raise ValueError("engine.quantization: fp8 on a GPU needs model.dtype: bfloat16 or float16")
        return self

    @model_validator(mode="after")
    def _models_can_be_served(self) -> Self:
        names = ", ".join(self.models)
        if self.default_model is not None and self.default_model not in self.models:
            raise ValueError(f"default_model ({self.default_model}) must be one of models: {names or 'there are none'}")
        # Not the first: on Kubernetes the order in the file is lost.
        if len(self.models) > 1 and self.default_model is None:
            raise ValueError(f"default_model: say which of the models a request means that names none: {names}")
        _ = self.served
        return self

    @model_validator(mode="after")
    def _files_can_be_kept(self) -> Self:
        if self.models:
            return self
        files, picture = self.files, 3 * self.model.max_size**2
        if files.path is None:
            if files.base_url is not None:
                raise ValueError("files.base_url needs files.path: without a folder there are no URLs")
            return self
        if self.auth.keys_file is not None and _lies_in(self.auth.keys_file, files.path):
            raise ValueError(f"auth.keys_file must not lie in files.path ({files.path}): files there are public")
        if files.max_bytes < picture:
            raise ValueError(
                f"files.max_bytes ({files.max_bytes}) must be at least {picture}: one picture of model.max_size"
            )
        return self
