"""The service's configuration: the `args` of a Serve YAML, or `key=value` of `serve run serve_app.app:build`.

Unknown keys are errors: Serve itself would silently drop them.
"""

from collections.abc import Mapping
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.models import EMBEDDED
from serve_app.recipe import SchedulerName
from serve_app.schemas import PredictionType, TimestepSpacing, longest_body
from serve_app.setting_types import AbsolutePath, BaseUrl, Origins, Places, Share, Sizes, Text, VariableName

Compile = Literal["none", "regional", "full"]
Quantization = Literal["none", "fp8"]

Side = Annotated[int, Field(ge=8, multiple_of=8)]


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Config):
    """The served checkpoint, and the defaults of requests."""

    path: Text = Field(
        default=EMBEDDED,
        description="A local diffusers folder, a single .safetensors file, a hub id, or `embedded` for the model that "
        "ships with the package.",
    )
    revision: Text | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    variant: Text | None = Field(default=None, description="Variant of the weight files, such as `fp16`.")
    config_path: Text | None = Field(
        default=None,
        description="For a single file: the diffusers folder or hub id with its configs and tokenizers. Null: "
        "diffusers detects them from the file.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Precision of the weights; latents are always float32 between steps."
    )
    name: Text | None = Field(
        default=None, description="The model's name in answers and pictures. Null: the last part of `path`."
    )
    preview_path: Text | None = Field(
        default=None,
        description="The AutoencoderTiny that decodes previews: a subfolder of the checkpoint, a local folder, "
        "a .safetensors file such as `taesdxl_decoder.safetensors`, or a hub id. "
        "Null: the subfolder `preview_vae` if it exists, else no previews.",
    )
    vae_path: Text | None = Field(
        default=None,
        description="The AutoencoderKL that decodes pictures: a subfolder of the checkpoint, a local folder, "
        "a .safetensors file (its config is the checkpoint's own, unless a config.json lies beside it), or a hub id. "
        "Null: the checkpoint's own; with `dtype` float16 it runs in bfloat16 if it overflows, as SDXL's does.",
    )
    scheduler: SchedulerName | None = Field(default=None, description="Default scheduler. Null: the checkpoint's own.")
    prediction_type: PredictionType | None = Field(
        default=None,
        description="What the UNet predicts. Null: read from the scheduler's config, or from a `v_pred` key in a "
        "single file.",
    )
    timestep_spacing: TimestepSpacing | None = Field(
        default=None,
        description="How steps are spaced over the timesteps. Most distilled models (Turbo, Lightning, Hyper) need "
        "`trailing`; single files do not say so. Null: the checkpoint's own.",
    )
    rescale_betas_zero_snr: bool | None = Field(
        default=None,
        description="Whether the last timestep is pure noise (zero terminal SNR). Null: read from the scheduler's "
        "config, or from a `ztsnr` key in a single file.",
    )
    num_inference_steps: int = Field(default=20, ge=1, description="Default number of denoising steps.")
    guidance_scale: float = Field(
        default=3.0, ge=0, le=30, description="Default guidance scale; 1 or less turns guidance off."
    )
    guidance_rescale: float = Field(default=0.0, ge=0, le=1, description="Default guidance rescale.")
    width: Side = Field(default=256, description="Default width in pixels.")
    height: Side = Field(default=256, description="Default height in pixels.")
    min_size: Side = Field(default=64, description="Smallest width or height a request may ask for, in pixels.")
    max_size: Side = Field(default=512, description="Largest width or height a request may ask for, in pixels.")

    @model_validator(mode="after")
    def _defaults_are_allowed(self) -> Self:
        if self.min_size > self.max_size:
            raise ValueError(f"model.min_size ({self.min_size}) must not be above model.max_size ({self.max_size})")
        for name, size in (("width", self.width), ("height", self.height)):
            if not self.min_size <= size <= self.max_size:
                raise ValueError(
                    f"model.{name} ({size}) must lie between model.min_size ({self.min_size}) "
                    f"and model.max_size ({self.max_size})"
                )
        return self

    @model_validator(mode="after")
    def _noise_can_be_predicted(self) -> Self:
        if self.prediction_type == "epsilon" and self.rescale_betas_zero_snr:
            raise ValueError(
                "model.rescale_betas_zero_snr: true cannot go with model.prediction_type: epsilon; "
                "at zero SNR the input is pure noise, so predicting the noise gives no picture"
            )
        return self


class EngineConfig(Config):
    """How one replica turns slots into UNet calls."""

    max_batch_size: int = Field(
        default=4, ge=1, description="How many images a replica generates at once; others wait in order of arrival."
    )
    images_per_call: int = Field(
        default=1,
        ge=1,
        description="How many images may share a UNet call. With 1, an image never depends on what else is generated: "
        "kernels round differently for other batch sizes. More is faster if one image does not fill the GPU.",
    )
    compile: Compile = Field(
        default="none",
        description="`full`: compile the UNet and the VAEs for the default size and `warm_up_sizes` (two minutes each "
        "at a first start); other sizes run uncompiled. `regional`: compile only the UNet's transformer blocks, for "
        "any size (seconds).",
    )
    warm_up_sizes: Sizes = Field(
        default=(),
        description="Sizes to warm up at the start besides the default size, such as `1152x896` (width x height).",
    )
    compile_cache: Text | None = Field(
        default=None,
        description="Folder of compiled models, shared by replicas and later starts; `~` is the home folder. "
        "They run as code, so they lie in a folder of its own for each user, which nobody else can enter. Null: "
        "`~/.cache/parallel-sdxl`. A new temporary folder is used where that cannot be created.",
    )
    quantization: Quantization = Field(
        default="none",
        description="`fp8`: run the UNet's large linear layers in 8-bit floats. Needs a GPU with fp8 (Hopper, Ada or "
        "later).",
    )
    prompt_cache_size: int = Field(
        default=16, ge=1, description="How many encoded prompts a replica caches; SDXL's take 26 MB each."
    )
    file_threads: int = Field(default=2, ge=1, description="Threads that encode image files beside the denoising loop.")
    stall_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="How long a step, an encoded prompt or a file may take at first, in seconds, before the replica "
        "counts as stalled and is replaced. Later ones may take 20 times as long as usual, and at least 10 seconds; "
        "so may the first of a new size, as far as the largest known size says what is usual.",
    )

    @model_validator(mode="after")
    def _as_many_as_there_are(self) -> Self:
        if self.images_per_call > self.max_batch_size:
            given, most = self.images_per_call, self.max_batch_size
            raise ValueError(f"engine.images_per_call ({given}) must not be above engine.max_batch_size ({most})")
        return self


class PreviewConfig(Config):
    """Limits on previews, whatever a request asks for and however slowly the client reads."""

    max_size: int = Field(
        default=512, ge=8, description="Longest side of a preview in pixels; larger latents are shrunk before decoding."
    )
    min_interval_s: float = Field(
        default=0.1, ge=0, description="Minimum time between two previews of one image, in seconds."
    )
    jpeg_quality: int = Field(default=80, ge=1, le=95, description="JPEG quality of previews.")


class LimitsConfig(Config):
    """What a request may ask for."""

    max_images: int = Field(default=16, ge=1, description="Maximum number of images in one request.")
    max_steps: int = Field(
        default=100,
        ge=1,
        le=998,
        description="Maximum number of denoising steps. Schedulers have 1000 timesteps, less their offset.",
    )
    max_body_bytes: int = Field(
        default=2**24,
        ge=1024,
        description="Maximum size of a request body in bytes. Pictures in it are a third larger than their files.",
    )
    max_picture_pixels: int = Field(
        default=2**24,
        ge=64,
        description="Maximum number of pixels of a picture to go on from. While decoded each takes up to 32 bytes "
        "of memory; an ingress decodes those of two requests at once.",
    )


class AdmissionConfig(Config):
    """When requests are refused with 429."""

    max_waiting_images: int = Field(
        default=64, ge=0, description="How many images may queue. Each ingress replica takes its part."
    )


class StreamsConfig(Config):
    """How long a generation can be read once its client has gone or it has ended."""

    keep_s: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="How long a generation is kept after its end, and goes on for a client that left and said `wait`, "
        "in seconds.",
    )
    max_kept_bytes: int = Field(
        default=2**28,
        ge=0,
        description="Maximum size of all ended generations that an ingress replica keeps, in bytes of memory; the "
        "oldest are dropped first.",
    )


class FilesConfig(Config):
    """Where images are stored for answers with URLs, and for how long."""

    path: AbsolutePath | None = Field(
        default=None,
        description="Absolute path of the folder of images, shared by all ingress replicas. Null: no URLs in answers.",
    )
    ttl_s: float = Field(default=3600.0, ge=1, description="How long a file is kept, in seconds.")
    max_bytes: int = Field(
        default=2**30,
        ge=2**20,
        description="Maximum size of all files together, in bytes; the oldest are deleted first.",
    )
    base_url: BaseUrl | None = Field(
        default=None,
        description="What URLs begin with, such as https://images.example.com. "
        "Null: the address the request was sent to.",
    )


class AuthConfig(Config):
    """Who may use the service. The config never holds the keys: dashboards and logs show it."""

    keys_env: VariableName | None = Field(
        default=None,
        description="Name of the ingress's environment variable with the API keys, separated by commas or newlines.",
    )
    keys_file: AbsolutePath | None = Field(
        default=None,
        description="Absolute path of a file with one API key per line; reloaded when it changes.",
    )

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self.keys_env is not None or self.keys_file is not None


class PicturesConfig(Config):
    """Pictures to go on from."""

    fetch_from: Places = Field(
        default=(),
        description="Where pictures that requests give as URLs may be fetched from, such as "
        "https://images.example.com; redirects are not followed. Empty: nowhere.",
    )


class A1111Config(Config):
    """The API of A1111's web UI, below /sdapi."""

    enabled: bool = Field(default=True, description="Whether to serve it.")


class CorsConfig(Config):
    """Which other web pages may call the service."""

    allow_origins: Origins = Field(
        default=(), description="Origins such as https://app.example.com, or `*` for any. Empty: none."
    )


def _lies_in(path: str, folder: str) -> bool:
    return Path(normpath(path)).is_relative_to(normpath(folder))


class ScalingConfig(Config):
    """How the number of replicas follows the images that are asked for."""

    min_replicas: int = Field(
        default=1,
        ge=0,
        description="Fewest replicas. 0: the service sleeps while nobody asks for images. A first request wakes it, "
        "and is refused with a Retry-After that follows how long starts take.",
    )
    max_replicas: int = Field(ge=1, description="Most replicas.")
    target_wait_s: float = Field(
        default=20.0,
        gt=0,
        description="In how many seconds all images shall be finished, those in work and in the queue; more replicas "
        "start if it takes longer.",
    )
    upscale_delay_s: float = Field(
        default=5.0, ge=0, description="For how long more replicas must be needed before they are started, in seconds."
    )
    downscale_delay_s: float = Field(
        default=300.0, ge=0, description="For how long fewer replicas must do before some are stopped, in seconds."
    )


class LiveSettings(Config):
    """The settings of the ingress that may change while the service runs: Serve's `user_config` of `Ingress`."""

    limits: LimitsConfig = LimitsConfig()
    admission: AdmissionConfig = AdmissionConfig()
    streams: StreamsConfig = StreamsConfig()
    files: FilesConfig = FilesConfig()
    auth: AuthConfig = AuthConfig()
    cors: CorsConfig = CorsConfig()
    a1111: A1111Config = A1111Config()
    pictures: PicturesConfig = PicturesConfig()


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

    def changed(self, live: Mapping[str, Any]) -> Self:
        """Return these settings with others of `LiveSettings`, section by section. Raises ValueError."""
        if fixed := sorted(live.keys() - LiveSettings.model_fields.keys()):
            known = ", ".join(LiveSettings.model_fields)
            raise ValueError(f"user_config: {fixed[0]} is not one of the settings that can change in a run: {known}")
        values = self.model_dump(exclude_unset=True)
        merged = {
            name: {**values.get(name, {}), **section} if isinstance(section, Mapping) else section
            for name, section in live.items()
        }
        return self.model_validate({**values, **merged})

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
                f"limits.max_body_bytes ({given}) must be at least {needed}, or the largest request could not be sent"
            )
        if (scaling := self.scaling) is not None:
            least, most = scaling.min_replicas, scaling.max_replicas
            if not least <= self.num_replicas <= most:
                raise ValueError(
                    f"num_replicas ({self.num_replicas}) must lie between scaling.min_replicas ({least}) "
                    f"and scaling.max_replicas ({most})"
                )
        if self.engine.quantization == "fp8" and self.num_gpus > 0 and self.model.dtype == "float32":
            raise ValueError("engine.quantization: fp8 on a GPU needs model.dtype: bfloat16 or float16")
        return self

    @model_validator(mode="after")
    def _files_can_be_kept(self) -> Self:
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
