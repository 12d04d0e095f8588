"""The body of a request, with the bounds that hold for every service."""

import json
from collections.abc import Mapping
from itertools import pairwise
from math import ceil, sqrt
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serve_app.body import Body, list_like
from serve_app.recipe import (
    LONGEST_TEXT,
    MOST_VARIATIONS,
    PROMPTS,
    SEED_SPAN,
    Changes,
    FirstSeed,
    Output,
    OutputFormat,
    Recipe,
    Seed,
    Variation,
)

ResponseFormat = Literal["b64_json", "url"]
OnDisconnect = Literal["cancel", "wait", "finish"]

_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"

_LONGEST_SIDES: Mapping[OutputFormat, int] = {"webp": 16383, "jpeg": 65500, "png": 2**31 - 1}
"""The longest side of each file format, in pixels."""

_OTHER_FIELDS = 1024
"""Bytes: more than all fields take together that are neither texts nor lists."""


def can_be_key(text: str) -> bool:
    """Whether an Authorization header can carry this as an API key: visible ASCII characters only."""
    return text.isascii() and text.isprintable() and " " not in text


def longest_body(max_images: int, max_steps: int) -> int:
    """Return the size in bytes of the largest request that these limits allow, but for `before`.

    Its phases have four texts each: with them the least body allowed would be five times as large, for what hardly
    anybody sends.
    """
    text = "\U0001f34e" * LONGEST_TEXT  # twelve bytes each from a client that escapes all but ASCII, as Python does
    seeds, steps = [SEED_SPAN - 1] * max_images, list(range(1, max_steps))
    texts = dict.fromkeys(PROMPTS, text)
    variations = [{"seed": SEED_SPAN - 1, "strength": 0.1234567890123456789}] * MOST_VARIATIONS
    fields = {**texts, "seeds": seeds, "preview_steps": steps, "variations": variations}
    return len(json.dumps(fields)) + _OTHER_FIELDS


def sheet_cells(images: int) -> tuple[int, int]:
    """Return the columns and rows of a contact sheet."""
    columns = ceil(sqrt(images))
    return columns, ceil(images / columns)


class Keep(Body):
    """A rule by which the service itself chooses which sketches to finish."""

    at_step: int = Field(ge=1, description="Each image stops after this step, and its sketch is compared.")
    best: int = Field(ge=1, description="How many are finished; the others end as `cancelled`, with error `not_kept`.")
    by: str = Field(
        min_length=1,
        max_length=255,
        description="How they are compared: `sharpness`, `colourfulness`, or one of `engine.scorers`.",
    )


class ResumeRequest(Changes):
    """The body of `POST /generations/{id}/resume`: which images, and what changes from their step on, if anything."""

    images: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, description="The indexes of the images that go on. Null: all that are paused."
    )


class FieldError(ValueError):
    """A field that is wrong because of other fields; pydantic alone would blame the whole body."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class GenerateRequest(Output, Recipe):
    """The body of `POST /generate` and `POST /stream`.

    `serve_app.ingress.requests` derives a class with the service's own limits and defaults.
    """

    model: str | None = Field(
        default=None, min_length=1, description="Which of the served models to use, by its name. Null: the default one."
    )
    num_images: int = Field(default=4, ge=1, description="How many images, each with its own seed.")
    seed: FirstSeed | None = Field(
        default=None,
        description="Seed of the first image; image i gets seed + i modulo 2^32. Null or -1: random.",
    )
    seeds: Annotated[list[Seed], Field(json_schema_extra={"uniqueItems": True})] | None = Field(
        default=None, min_length=1, description="Distinct seeds, one image each, instead of seed and num_images."
    )
    variations: Annotated[tuple[Variation, ...], Field(strict=False), list_like('[{"strength": 0.2}]')] = Field(
        default=(),
        max_length=MOST_VARIATIONS,
        description="Make relatives of the seed's image: its noise is moved towards that of other seeds, one after the "
        "other. All images then have the same seed, unless seeds are listed, and the last variation's seed counts up "
        "instead: image i gets seed + i. A strength of 0 is no variation.",
    )
    response_format: ResponseFormat = Field(
        default="b64_json",
        description="Return images and grid as base64 text, or as a `url`, which needs the option files.path.",
    )
    preview_every: int = Field(
        default=5,
        ge=0,
        le=100,
        description="Previews after step 1 and after every multiple of this, except the last step; 0: none.",
    )
    preview_steps: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None,
        max_length=1000,
        description="Previews after exactly these steps, instead of preview_every; empty: none.",
    )
    pause_after: int | None = Field(
        default=None,
        ge=1,
        description="Sketch first: each image stops after so many steps, shows what it has become so far, and waits "
        "for `POST /generations/{id}/resume`, off the GPU. For streams of this API alone. Null: images do not stop.",
    )
    keep: Keep | None = Field(
        default=None,
        description="Sketch first, and finish the best: images stop after some steps, and those whose sketches are the "
        "best go on by themselves. Null: all are finished.",
    )
    grid: bool = Field(default=False, description="Also return one contact sheet of all images.")
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Deadline in seconds: images finished by then are returned, the others fail with "
        "`deadline_exceeded`. Null: the service's own limit.",
    )
    on_disconnect: OnDisconnect = Field(
        default="cancel",
        description="What happens to unfinished images once the client has gone: `cancel` them at once, `wait` for it "
        "to come back within streams.keep_s, or `finish` them.",
    )
    id: str | None = Field(
        default=None,
        pattern=_UUID,
        description="Id of the generation, a random UUID of the client's own, to find it by even if the answer never "
        "arrives. Null: the service chooses one.",
    )

    @property
    def relatives(self) -> tuple[Variation, ...]:
        """The variations that change something."""
        return tuple(variation for variation in self.variations if variation.strength)

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
                "the last step gives the image itself",
            )
        return self

    @model_validator(mode="after")
    def _goes_on_from_a_picture(self) -> Self:
        if self.mask_image is not None and self.init_image is None:
            raise FieldError("mask_image", "needs an init_image: a mask says which part of it to generate")
        steps = self.num_inference_steps
        if self.first_step == steps:
            raise FieldError(
                "strength",
                f"{self.strength:g} of {steps} steps is none: give at least {ceil(100 / steps) / 100:g} or more steps",
            )
        return self

    @property
    def sketched_at(self) -> int | None:
        """The step after which images pause; None: they do not."""
        return self.keep.at_step if self.keep else self.pause_after

    @model_validator(mode="after")
    def _pauses_in_between(self) -> Self:
        first, last, pause = self.first_step, self.num_inference_steps, self.sketched_at
        if pause is not None and not first < pause < last:
            after = f"above {first}, the steps that `strength` leaves out, and " if first else ""
            field = "keep.at_step" if self.keep else "pause_after"
            raise FieldError(field, f"must be {after}below num_inference_steps ({last})")
        return self

    @model_validator(mode="after")
    def _keeps_some(self) -> Self:
        images = len(self.seeds) if self.seeds else self.num_images
        if self.keep and self.pause_after is not None:
            raise FieldError("keep", "give either keep or pause_after, where somebody chooses")
        if self.keep and self.keep.best >= images:
            raise FieldError("keep.best", f"must be below the number of images ({images}), of which it keeps the best")
        return self

    @model_validator(mode="after")
    def _phases_follow_each_other(self) -> Self:
        ends = [0, *(phase.until_step for phase in self.before), self.num_inference_steps]
        if self.before and any(end <= begun for begun, end in pairwise(ends)):
            raise FieldError(
                "before",
                f"each until_step must be above the one before and below num_inference_steps ({ends[-1]}): "
                "the recipe's own prompts come last",
            )
        return self

    @model_validator(mode="after")
    def _avoids_whole_sizes(self) -> Self:
        sizes = ("negative_original_size", "negative_target_size")
        missing = [name for name in sizes if getattr(self, name) is None]
        if len(missing) == 1:
            raise FieldError(missing[0], f"is missing: {' and '.join(sizes)} only work together")
        if missing and any(self.negative_crops_coords_top_left):
            raise FieldError("negative_crops_coords_top_left", f"needs {' and '.join(sizes)}")
        return self

    @model_validator(mode="after")
    def _fits_its_files(self) -> Self:
        columns, rows = sheet_cells(len(self.seeds) if self.seeds else self.num_images) if self.grid else (1, 1)
        longest, most = max(columns * self.width, rows * self.height), _LONGEST_SIDES[self.output_format]
        if longest > most:
            what = f"the {'grid' if self.grid else 'picture'} would be {longest} pixels long"
            raise FieldError("output_format", f"{what}, but {self.output_format} allows {most}; use png")
        return self
