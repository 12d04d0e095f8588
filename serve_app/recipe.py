"""The settings that a picture depends on, each defined once with its bounds, default and meaning."""

import hashlib
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from serve_app.body import Body, list_like

_Euler = Literal["euler", "euler_a", "heun", "dpm2", "dpm2_a", "lms"]
_Dpmpp = Literal["dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s", "dpmpp_sde"]
_Others = Literal["ddim", "unipc", "deis", "pndm", "sa_solver", "ddpm"]
_OfSomeModels = Literal["lcm", "tcd", "edm_euler", "edm_dpmpp_2m"]
SchedulerName = Literal[_Euler, _Dpmpp, _Others, _OfSomeModels]
SigmaSchedule = Literal["karras", "exponential", "beta", "sgm_uniform", "align_your_steps"]
PromptSyntax = Literal["plain", "weighted"]
OutputFormat = Literal["png", "jpeg", "webp"]

SEED_SPAN = 2**32
"""Seeds are taken modulo this number."""
LONGEST_TEXT = 2000
CHUNK_TOKENS = 75
"""How much of a prompt CLIP reads at once."""
USUAL_PROMPT_TOKENS, MOST_PROMPT_CHUNKS = 3 * CHUNK_TOKENS, 8
"""How much of a prompt a service reads by default, and at most."""
LARGEST_PADDING = 8192
LONGEST_NAME = 255
"""Characters of an adapter's name."""
LARGEST_SCALE = 4
"""Of an adapter, in both directions."""
RANDOM = -1
"""Asks for a random seed, as in most image tools."""


_HASH_DIGITS = 16
"""Enough to know a file again, and too few to tell the name of a stored file, which is its secret."""

OF_MASKS = ("mask_blur", "padding_mask_crop", "keep_outside")
"""The settings that only a mask gives a meaning."""
PROMPTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
OF_CONDITIONING = (
    "prompt_2",
    "negative_prompt_2",
    "original_size",
    "crops_coords_top_left",
    "target_size",
    "negative_original_size",
    "negative_crops_coords_top_left",
    "negative_target_size",
)
"""Further inputs of SDXL, as diffusers' pipeline names and treats them."""
OF_PICTURES = ("init_image", "mask_image", "strength", *OF_MASKS)
"""The settings that only a picture to go on from gives a meaning."""


def _not_random(seed: Any) -> Any:
    if seed == RANDOM:
        raise ValueError(f"{RANDOM} (random) is only allowed for `seed`; list every seed here")
    return seed


def picture_hash(file: bytes) -> str:
    """Return how answers and pictures name the file of a picture that was given: the start of its SHA-256."""
    return hash_of_digest(hashlib.sha256(file).hexdigest())


def hash_of_digest(digest: str) -> str:
    """Return how answers and pictures name a file whose SHA-256 has these hex digits."""
    return f"sha256:{digest[:_HASH_DIGITS]}"


Seed = Annotated[int, Field(ge=0, lt=SEED_SPAN), BeforeValidator(_not_random)]
FirstSeed = Annotated[int, Field(ge=RANDOM, lt=SEED_SPAN), AfterValidator(lambda n: None if n == RANDOM else n)]
"""A seed; `RANDOM` becomes None."""


Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Prompt = Annotated[Text, Field(min_length=1)]
GuidanceScale = Annotated[float, Field(ge=0, le=30, allow_inf_nan=False)]
GuidanceRescale = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

LARGEST_SIDE = 2**14
"""The largest size that the UNet can be told: half precision ends at 65504."""
Pixels = Annotated[int, Field(ge=0, le=LARGEST_SIDE)]
Pair = Annotated[tuple[Pixels, ...], Field(min_length=2, max_length=2, strict=False)]
"""Height and width, or top and left."""


MOST_VARIATIONS = 8


class Variation(Body):
    """Moves an image's noise towards that of another seed, so that it becomes a relative."""

    seed: FirstSeed | None = Field(default=None, description="The other seed. Null or -1: random.")
    strength: float = Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="How far: at 0 it is the image itself, near 0.1 a close relative, at 1 the other seed's image.",
    )


MOST_PHASES = 4


class Changes(Body):
    """Settings that may change between two steps."""

    prompt: Prompt | None = Field(default=None, description="Null here and below: the recipe's own.")
    negative_prompt: Text | None = None
    prompt_2: Text | None = Field(default=None, description="Empty: the prompt that holds with it.")
    negative_prompt_2: Text | None = Field(default=None, description="Empty: the negative_prompt that holds with it.")
    guidance_scale: GuidanceScale | None = None
    guidance_rescale: GuidanceRescale | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Those that differ."""
        return {name: value for name in OF_PHASES if (value := getattr(self, name)) is not None}


NO_CHANGES = Changes()
OF_PHASES = tuple(Changes.model_fields)


class Phase(Changes):
    """The first steps of a picture that is a branch, up to one, with settings that differ from its recipe's own."""

    until_step: int = Field(
        ge=1, description="The last step of the phase, as events count steps: those that `strength` leaves out count."
    )


class Lora(Body):
    """An adapter of a request: which, and how strongly it counts."""

    name: str = Field(min_length=1, max_length=LONGEST_NAME, description="Its name, as `GET /loras` lists it.")
    scale: float = Field(
        default=1.0, ge=-LARGEST_SCALE, le=LARGEST_SCALE, allow_inf_nan=False, description="How strongly it counts."
    )
    hash: str | None = Field(
        default=None,
        description="The start of its file's SHA-256, as answers and pictures name it; a request that gives it is "
        "refused if the file is another one by now. Null: whichever file has this name.",
    )


class Embedding(Body):
    """A textual inversion that a prompt names as `embedding:name`."""

    name: str = Field(min_length=1, max_length=LONGEST_NAME, description="Its name, as `GET /embeddings` lists it.")
    hash: str | None = Field(
        default=None, description="The start of its file's SHA-256, as that of a LoRA. Null: whichever file it is."
    )


class Recipe(Body):
    """Everything a picture depends on besides its seed and the model.

    In a request `init_image` and `mask_image` are the pictures themselves, everywhere else their hashes.
    """

    prompt: Prompt = Field(description="What to generate.")
    negative_prompt: Text = Field(default="", description="What to avoid; needs a guidance_scale above 1.")
    prompt_2: Text | None = Field(
        default=None, description="What the second text encoder reads. Null or empty: the prompt."
    )
    negative_prompt_2: Text | None = Field(
        default=None, description="The same of the negative prompt. Null or empty: negative_prompt."
    )
    prompt_syntax: PromptSyntax = Field(
        default="plain",
        description="How prompts are read. `weighted`: `(word:1.3)`, `(word)`, `[word]` and BREAK as in A1111's web "
        "UI; `plain`: as words.",
    )
    width: int = Field(default=256, multiple_of=8, description="Width in pixels.")
    height: int = Field(default=256, multiple_of=8, description="Height in pixels.")
    num_inference_steps: int = Field(default=20, ge=1, description="Denoising steps.")
    guidance_scale: GuidanceScale = Field(default=5.0, description="Classifier-free guidance; 1 or less turns it off.")
    guidance_rescale: GuidanceRescale = Field(
        default=0.0,
        description="How far guidance is scaled back to the contrast of an unguided picture; 0.7 suits v-prediction "
        "models.",
    )
    scheduler: SchedulerName | None = Field(default=None, description="Null: the model's default.")
    sigma_schedule: SigmaSchedule | None = Field(
        default=None,
        description="How noise levels follow each other, of the scheduler's. Null: the checkpoint's own way.",
    )
    init_image: str | None = Field(
        default=None,
        min_length=1,
        description="A picture to go on from: its file as base64 or a data URI, the name or URL of a file that this "
        "service stores, or a URL of a place that it may fetch from. Answers and pictures say its hash instead.",
    )
    mask_image: str | None = Field(
        default=None,
        min_length=1,
        description="Which part of init_image to generate anew, given in the same ways: white where to generate, "
        "black where to keep. Null: all of it.",
    )
    strength: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="How far the picture may go from init_image: the share of the steps that is done. "
        "Null: 0.6, or 1 with a mask.",
    )
    mask_blur: int = Field(
        default=0, ge=0, le=256, description="How softly mask_image ends: the radius of a Gaussian blur in pixels."
    )
    padding_mask_crop: int | None = Field(
        default=None,
        ge=0,
        le=LARGEST_PADDING,
        description="Generate only the region around what mask_image marks and so many pixels more, scaled to the full "
        "size: small parts get more detail. Null: the whole picture is generated.",
    )
    keep_outside: bool = Field(
        default=True,
        description="Whether what mask_image does not mark keeps the pixels of init_image exactly, instead of what the "
        "model makes of them.",
    )

    original_size: Pair | None = Field(
        default=None,
        description="Height and width that the model is told a training picture had: small ones look blurred. "
        "Null: those of the picture.",
    )
    crops_coords_top_left: Pair = Field(
        default=(0, 0), description="Top and left of what the model is told was cut out of it; 0, 0 centres things."
    )
    target_size: Pair | None = Field(
        default=None,
        description="Height and width that the model is told the picture has. Null: those of the picture.",
    )
    negative_original_size: Pair | None = Field(
        default=None,
        description="What to avoid: the model is told it beside the negative prompt. With negative_target_size. "
        "Null: as for the prompt.",
    )
    negative_crops_coords_top_left: Pair = Field(
        default=(0, 0), description="The crop to avoid; only with negative_original_size and negative_target_size."
    )
    negative_target_size: Pair | None = Field(
        default=None, description="The target size to avoid; with negative_original_size. Null: as for the prompt."
    )
    loras: Annotated[tuple[Lora, ...], Field(strict=False), list_like('[{"name": "pixel-art", "scale": 0.8}]')] = Field(
        default=(), description="Adapters (LoRA) to generate with, each at most once; their order does not count."
    )

    embeddings: Annotated[tuple[Embedding, ...], Field(strict=False)] = Field(
        default=(),
        description="The files that the prompts name as `embedding:name`. Prompts alone will do; a request that gives "
        "hashes is refused if a file is another one by now.",
    )

    before: Annotated[
        tuple[Phase, ...], Field(strict=False), list_like('[{"until_step": 6, "prompt": "a red fox"}]')
    ] = Field(
        default=(),
        max_length=MOST_PHASES,
        description="Makes the picture a branch of another: its first steps are made with these prompts and guidance, "
        "one phase after the other, then the recipe's own take over. All else, LoRAs included, holds for all steps.",
    )

    @field_validator("loras")
    @classmethod
    def _each_once_and_in_one_order(cls, loras: tuple[Lora, ...]) -> tuple[Lora, ...]:
        """Sort: sums of floats depend on their order, and a picture must not."""
        if len({lora.name for lora in loras}) != len(loras):
            raise ValueError("each adapter may be named once; add up its scales")
        return tuple(sorted(loras, key=lambda lora: lora.name))

    @property
    def adapters(self) -> tuple[Lora, ...]:
        """The adapters that count: a scale of 0 is none."""
        return tuple(lora for lora in self.loras if lora.scale)

    @property
    def adapters_key(self) -> tuple[tuple[str | None, float], ...]:
        """What tells the adapters from those of other recipes: their hashes and scales, in order."""
        return tuple((lora.hash, lora.scale) for lora in self.adapters)

    @property
    def adapter_files(self) -> frozenset[str]:
        """The hashes of the files of its adapters and embeddings, as far as they are known."""
        hashes = [*(lora.hash for lora in self.adapters), *(embedding.hash for embedding in self.embeddings)]
        return frozenset(hash_ for hash_ in hashes if hash_ is not None)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt counts, which adds a second row to each UNet call."""
        return self.guidance_scale > 1

    @property
    def first_step(self) -> int:
        """How many steps of the schedule are left out before the first, as diffusers counts them for a strength."""
        steps = self.num_inference_steps
        return 0 if self.init_image is None or self.strength is None else steps - int(steps * self.strength)

    @property
    def phases(self) -> tuple["Recipe", ...]:
        """The recipes of its steps, in their order, none of them a branch; the last is its own."""
        return tuple(
            self.model_copy(update={**settings, "before": ()})
            for settings in (*(phase.settings for phase in self.before), {})
        )

    def phase_after(self, step: int) -> int:
        """Return which of `phases` follows the first `step` steps of the schedule, 0 being the first."""
        return sum(phase.until_step <= step for phase in self.before)

    @property
    def texts(self) -> dict[str, str]:
        """All its prompts, by the paths of their fields."""
        said = {name: getattr(self, name) for name in PROMPTS}
        for place, phase in enumerate(self.before):
            said |= {f"before.{place}.{name}": getattr(phase, name) for name in PROMPTS}
        return {path: text for path, text in said.items() if text}

    @property
    def without_meaning(self) -> set[str]:
        """The settings that say nothing here: those of a picture to go on from without one, and others left out."""
        optional = ("loras", "embeddings", "before", "sigma_schedule", *OF_CONDITIONING)
        unset = {name for name in optional if getattr(self, name) == type(self).model_fields[name].default}
        return unset if self.init_image else unset | set(OF_PICTURES)


class Output(Body):
    """How a finished picture is written."""

    output_format: OutputFormat = Field(default="png", description="File format of the images.")
    output_compression: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Quality of a JPEG (default 95) or WebP (default 90); ignored for PNG, which is lossless.",
    )
