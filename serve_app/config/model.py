"""Settings of the served model, and the defaults of requests."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serve_app.config.base import Config
from serve_app.models import EMBEDDED
from serve_app.recipe import PromptSyntax, SchedulerName
from serve_app.schemas import PredictionType, TimestepSpacing
from serve_app.setting_types import Text

Side = Annotated[int, Field(ge=8, multiple_of=8)]


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
        description="For a single file: the diffusers folder or hub id with its configs and tokenizers. Null: SDXL's "
        "own, which ship with the package; how its UNet is built is read from the file.",
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
    prompt_syntax: PromptSyntax = Field(
        default="plain",
        description="How prompts are read that do not say it: as words, or with weights (`weighted`), which A1111's "
        "API always reads.",
    )
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
