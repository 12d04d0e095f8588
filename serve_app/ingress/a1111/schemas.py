"""The API of A1111's web UI as this service implements it: bodies, answers and errors."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.ingress.requests import ForeignRequest
from serve_app.recipe import RANDOM, SEED_SPAN
from serve_app.schemas import Answer, FieldError

UNSUPPORTED = "is not supported; leaving it out would change the picture"

_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "restore_faces": (),
    "tiling": (),
    "enable_hr": (),
    "styles": (),
    "script_name": (),
    "script_args": (),
    "alwayson_scripts": (),
    "firstpass_image": (),
    "refiner_checkpoint": ("None",),
    "seed_resize_from_h": (-1,),
    "seed_resize_from_w": (-1,),
    "eta": (1,),
    "s_churn": (),
    "s_min_uncond": (),
    "s_tmin": (),
    "s_noise": (1,),
    "resize_mode": (),
    "inpainting_mask_invert": (),
    "latent_mask": (),
}
"""Fields of which only these values, or empty ones, can be served: others would change the picture."""

WITHOUT_EFFECT = {
    *_UNSUPPORTED,
    *("save_images", "send_images", "do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards"),
    *("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name"),
    *("hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_additional_modules", "hr_cfg"),
    *("firstphase_width", "firstphase_height", "refiner_switch_at", "disable_extra_networks", "comments", "s_tmax"),
    *("force_task_id", "infotext", "clip_skip", "denoising_strength", "mask_round", "image_cfg_scale"),
    *("include_init_images", "initial_noise_multiplier", "url", "auth"),
}
"""Fields that clients send and that say nothing about the picture here; other unknown ones are warned of."""


class Txt2Img(ForeignRequest):
    """The body of `POST /sdapi/v1/txt2img`. Null means the default; defaults are the served model's.

    `serve_app.ingress.a1111.requests` derives the class that is used. As in A1111, numbers may be texts, and unknown
    fields are no error: `info` names them in its `warnings`.
    """

    model_config = ConfigDict(strict=False, extra="allow")

    prompt: str
    negative_prompt: str
    steps: int
    cfg_scale: float
    width: int
    height: int
    seed: int | None
    timeout_s: float | None
    subseed: int = Field(default=RANDOM, ge=RANDOM, lt=SEED_SPAN, description="Variation seed; -1: random.")
    subseed_strength: float = Field(
        default=0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="How far each image goes from the seed's towards that of its variation seed. Above 0 the seed "
        "stays the same and the variation seed counts up.",
    )
    batch_size: int = Field(default=1, ge=1, description="Images of a batch; all batches are generated in parallel.")
    n_iter: int = Field(default=1, ge=1, description="Batches; n_iter x batch_size images, with consecutive seeds.")
    sampler_name: str | None = Field(
        default=None, description="One of `GET /sdapi/v1/samplers`. Null: the model's own."
    )
    sampler_index: str | None = Field(default=None, description="An older name of sampler_name, which goes first.")
    scheduler: str | None = Field(
        default=None,
        description="One of `GET /sdapi/v1/schedulers` that the sampler can follow. Null: the model's own.",
    )
    override_settings: dict[str, Any] = Field(
        default={}, description="Settings of `GET /sdapi/v1/options`; others than those in effect are refused."
    )

    @model_validator(mode="after")
    def _can_be_served(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value and name in _UNSUPPORTED and value not in _UNSUPPORTED[name]:
                raise FieldError(name, UNSUPPORTED)
        return self


class Img2Img(Txt2Img):
    """The body of `POST /sdapi/v1/img2img`. Without width and height the picture keeps its size."""

    init_images: list[str] = Field(
        min_length=1, max_length=1, description="One picture to go on from: base64, a data URI, or a stored file's URL."
    )
    denoising_strength: float | None
    mask: str | None = Field(default=None, description="White where to generate anew, black where to keep.")
    mask_blur: int
    inpaint_full_res: bool = Field(default=True, description="Generate only the region around the mask.")
    inpaint_full_res_padding: int = Field(default=0, ge=0, le=8192, description="How many pixels around the mask.")
    inpainting_fill: int = Field(default=1, description="No effect: what the mask marks starts from the picture, as 1.")


class PngInfoBody(ForeignRequest):
    """The body of `POST /sdapi/v1/png-info`."""

    image: str = Field(min_length=1, description="A picture: base64, a data URI, or a stored file's URL.")


class ImagesAnswer(Answer):
    """Pictures as base64, the settings in effect, and `info`: JSON with seeds and texts, as A1111 has it."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class PngInfo(Answer):
    """The text that programs put into a picture; empty if there is none."""

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


class SdModel(Answer):
    title: str
    model_name: str
    hash: str
    sha256: None = None
    filename: str
    config: None = None


class LoraCard(Answer):
    """An adapter, to be named in a prompt as `<lora:name:0.8>`."""

    name: str
    alias: str
    path: str
    metadata: dict[str, Any] = Field(default={}, description="Always empty: see `GET /loras`.")


class EmbeddingCard(Answer):
    step: None = None
    sd_checkpoint: None = None
    sd_checkpoint_name: None = None
    shape: None = None
    vectors: int = Field(description="How many tokens of a prompt it takes.")


class EmbeddingCards(Answer):
    """Embeddings by their names; `skipped` are those made for other models."""

    loaded: dict[str, EmbeddingCard]
    skipped: dict[str, EmbeddingCard]


class Sampler(Answer):
    name: str
    aliases: list[str]
    options: dict[str, str] = Field(default={})


class Schedule(Answer):
    name: str
    label: str
    aliases: list[str] | None = None
    default_rho: float = -1.0
    need_inner_model: bool = False


class Upscaler(Answer):
    name: str
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float = 1.0


class ProgressState(Answer):
    skipped: bool = False
    interrupted: bool = False
    job: str
    job_count: int
    job_timestamp: str = ""
    job_no: int
    sampling_step: int
    sampling_steps: int


class Progress(Answer):
    """How far the requests of this client are."""

    progress: float = Field(description="0 to 1; 0 where nothing is generated.")
    eta_relative: float = Field(default=0.0, description="Always 0: not known.")
    state: ProgressState
    current_image: str | None = Field(
        default=None, description="A JPEG preview of the picture that is forming, as base64; null while there is none."
    )
    textinfo: None = None


class A1111ErrorBody(BaseModel):
    error: str
    detail: str
    body: str
    errors: str
    param: str | None
