"""From a request to its slots."""

import secrets
from collections.abc import Sequence

from serve_app.messages import Slot
from serve_app.recipe import SEED_SPAN, Output, Recipe, SchedulerName
from serve_app.schemas import GenerateRequest


def seeds_of(request: GenerateRequest) -> list[int]:
    """Return one seed for each image: those listed, or consecutive ones from the given or a random base."""
    if request.seeds is not None:
        return list(request.seeds)
    base = secrets.randbelow(SEED_SPAN) if request.seed is None else request.seed
    return [(base + i) % SEED_SPAN for i in range(request.num_images)]


def preview_steps_of(request: GenerateRequest) -> frozenset[int]:
    """Return the steps to preview after: those listed, or the first and every so many; never the last."""
    if request.preview_steps is not None:
        return frozenset(request.preview_steps)
    if not request.preview_every:
        return frozenset()
    last = request.num_inference_steps
    return frozenset({1, *range(request.preview_every, last, request.preview_every)} - {last})


def slots_of(request: GenerateRequest, seeds: Sequence[int], default_scheduler: SchedulerName) -> list[Slot]:
    """Return the slots of a request, one for each seed."""
    recipe = Recipe.of(request).model_copy(update={"scheduler": request.scheduler or default_scheduler})
    output, preview_steps = Output.of(request), preview_steps_of(request)
    return [
        Slot(index, seed, recipe, output, preview_steps, keep_pixels=request.grid) for index, seed in enumerate(seeds)
    ]
