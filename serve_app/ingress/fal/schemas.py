"""fal-ai/fast-sdxl as this service implements it: input, output, frames of a stream and errors."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from serve_app.body import Body
from serve_app.ingress.requests import ForeignRequest
from serve_app.schemas import Answer, OtherModel, Variations

SizeName = Literal["square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"]

SIZES: dict[SizeName, tuple[int, int]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
"""Width and height in pixels."""

_NO_EFFECT = "Accepted, but has no effect."
_PICTURE = "a data URI, the URL of a file that this service stores, or one of a place in `pictures.fetch_from`."


class Size(Body):
    width: int
    height: int


class LoraWeight(Body):
    """A LoRA and how strongly it counts."""

    path: str = Field(min_length=1, description="Its name, as `GET /loras` lists it; nothing is fetched from a URL.")
    scale: float = Field(default=1.0, ge=-4, le=4, allow_inf_nan=False, description="How strongly it counts.")


def _empty(value: Any) -> Any:
    if value:
        raise ValueError("is not supported; leaving it out would change the picture")
    return value


No = Annotated[bool, Field(json_schema_extra={"const": False}), BeforeValidator(_empty)]
Nothing = Annotated[list[Any], Field(max_length=0), BeforeValidator(_empty)]


def _name_or_size(size: Any) -> str:
    return "name" if isinstance(size, str) else "size"


class FastSdxlInput(ForeignRequest):
    """The body of `POST /fal-ai/fast-sdxl`. Defaults are the served model's, not fal's; null means the default.

    `serve_app.ingress.fal.requests` derives the class that is used: fields without a default here get
    `GenerateRequest`'s.
    """

    prompt: str
    negative_prompt: str
    image_size: (
        Annotated[Annotated[SizeName, Tag("name")] | Annotated[Size, Tag("size")], Discriminator(_name_or_size)] | None
    )
    num_inference_steps: int
    guidance_scale: float
    num_images: int
    seed: int | None
    timeout_s: float | None
    model_name: str | None = Field(
        default=None,
        min_length=1,
        description="Which of the served models to use, by its name, as in fal-ai/lora. Null: the default one.",
    )
    format: Literal["jpeg", "png"] = Field(default="jpeg", description="File format of the images.")
    sync_mode: bool = Field(
        default=False,
        description="Return images as data URIs. Without the service's option files.path they always are.",
    )
    request_id: str | None = Field(default=None, description=_NO_EFFECT)
    enable_safety_checker: No = Field(default=False, description="Not supported: true is refused.")
    safety_checker_version: Literal["v1", "v2"] | None = Field(default=None, description=_NO_EFFECT)
    expand_prompt: No = Field(default=False, description="Not supported: true is refused.")
    loras: list[LoraWeight] = Field(default=[], description="LoRAs that this service has, each once.")
    embeddings: Nothing = Field(default=[], description="Not supported: only an empty list is accepted.")


class ImageToImageInput(FastSdxlInput):
    """The body of `POST /fal-ai/fast-sdxl/image-to-image`. Without `image_size` the picture keeps its size."""

    image_url: str = Field(min_length=1, description=f"The picture to go on from: {_PICTURE}")
    strength: float | None
    preserve_aspect_ratio: bool = Field(
        default=False,
        description="No effect: without `image_size` the shape is kept, with it the picture is stretched.",
    )
    crop_output: No = Field(default=False, description="Not supported: true is refused.")


class InpaintingInput(ImageToImageInput):
    """The body of `POST /fal-ai/fast-sdxl/inpainting`. Without `image_size` the picture keeps its size."""

    mask_url: str = Field(min_length=1, description=f"A mask, white where to generate anew: {_PICTURE}")


class File(Answer):
    """An image at a URL: that of a stored file, or a data URI without a file name."""

    url: str
    width: int
    height: int
    content_type: str
    file_name: str | None
    file_size: int
    model: OtherModel = None
    variations: Variations = ()


class Failure(Answer):
    """Why the image of a seed is missing."""

    image_index: int
    seed: int
    type: str
    message: str


class FastSdxlOutput(Answer):
    """The answer, or the last frame of a stream. `seed` is the request's first seed, `seeds` are those of `images`."""

    images: list[File]
    timings: dict[str, float] = Field(description="Seconds; `inference` is the denoising time of the last image.")
    seed: int
    seeds: list[int]
    prompt: str
    failures: list[Failure]
    warnings: list[str]


class PreviewFrame(Answer):
    """A frame of a stream: one image predicted after `step` steps."""

    images: list[File]
    image_index: int
    seed: int
    step: int
    num_inference_steps: int


class ErrorItem(Answer):
    loc: list[str]
    msg: str
    type: str


class FalErrorBody(Answer):
    """An error, or the last frame of a stream that gave no image."""

    detail: list[ErrorItem]
