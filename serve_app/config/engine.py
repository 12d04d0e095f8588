"""Settings of a replica: how it generates, and its previews."""

from collections.abc import Mapping
from math import ceil
from typing import Literal, Self

from pydantic import Field, model_validator

from serve_app.config.base import Config
from serve_app.recipe import MOST_PROMPT_CHUNKS
from serve_app.setting_types import ImportPath, Sizes, Text

Compile = Literal["none", "regional", "full"]
Quantization = Literal["none", "fp8"]


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
    calls_at_once: int | None = Field(
        default=None,
        ge=1,
        le=4,
        description="How many UNet calls run side by side on a GPU: one fills the gaps that another leaves, and bits "
        "stay the same. Each has CUDA graphs of its own, which take memory. Null: 2 on a GPU, 1 on the CPU. Small "
        "pictures gain from more: 512x512 on an H100 4.8 images/s with 1, 5.7 with 4.",
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
    warm_up_prompt_chunks: int = Field(
        default=1,
        ge=1,
        le=MOST_PROMPT_CHUNKS,
        description="Up to how long prompts to warm up, in chunks of 75 tokens. With `compile: full` the UNet is "
        "compiled for each length and size; longer prompts run uncompiled, which takes longer.",
    )
    compile_cache: Text | None = Field(
        default=None,
        description="Folder of compiled models and kernels, shared by replicas and later starts; `~` is the home "
        "folder. They run as code, so they lie in a folder of its own for each user, which nobody else can enter. "
        "Null: `~/.cache/parallel-sdxl`. A new temporary folder is used where that cannot be created.",
    )
    quantization: Quantization = Field(
        default="none",
        description="`fp8`: run the UNet's large linear layers in 8-bit floats, on Hopper GPUs its and the VAE's "
        "convolutions too. Needs a GPU with fp8 (Hopper, Ada or later).",
    )
    prompt_cache_size: int = Field(
        default=16,
        ge=1,
        description="How many encoded prompts a replica caches; SDXL's take 26 MB for each chunk of 75 tokens, and "
        "longer ones count as several.",
    )
    keep_every: int = Field(
        default=0,
        ge=0,
        description="Keep the state of an image after every so many steps, so that one whose replica dies goes on from "
        "there, with the same bits. Of SDXL at 1024x1024 it is 0.5 to 2 MB, sent to the ingress. 0: never, which "
        "suits images of a few seconds.",
    )
    scorers: Mapping[str, ImportPath] = Field(
        default={},
        description="What may compare sketches (`keep.by` in requests) besides `sharpness` and `colourfulness`: a "
        "function for each name by its import path, such as `my_package.scorers:aesthetic`. It is given a sketch "
        "(numpy, height x width x 3, uint8 RGB) and its prompt, and returns a number, more being better. Replicas "
        "call it on the CPU, beside the denoising loop, one sketch after the other.",
    )
    file_threads: int = Field(default=2, ge=1, description="Threads that encode image files beside the denoising loop.")
    stall_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="How long a step, an encoded prompt or a file may take at first, in seconds, before the replica "
        "counts as stalled and is replaced. Later ones may take 20 times as long as usual, and at least 10 seconds; "
        "so may the first of a new size, as far as the largest known size says what is usual.",
    )

    def lanes(self, *, on_gpu: bool) -> int:
        """Return how many UNet calls run side by side; no more than it takes for all images of a batch."""
        return min(self.calls_at_once or (2 if on_gpu else 1), ceil(self.max_batch_size / self.images_per_call))

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
