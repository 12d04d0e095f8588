"""From a request to its slots."""

import secrets
from collections.abc import Sequence

from serve_app.messages import Slot
from serve_app.schemas import SEED_SPAN, GenerateRequest, SchedulerName


def seeds_of(request: GenerateRequest) -> list[int]:
    """Return one seed for each image: those listed, or consecutive ones from the given or a random base."""
    if request.seeds is not None:
        return list(request.seeds)
    base = secrets.randbelow(SEED_SPAN) if request.seed is None else request.seed
    return [(base + i) % SEED_SPAN for i in range(request.num_images)]


def slots_of(request: GenerateRequest, seeds: Sequence[int], default_scheduler: SchedulerName) -> list[Slot]:
    """Return the slots of a request, one for each seed."""
    return [
        Slot(
            index=index,
            seed=seed,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            scheduler=request.scheduler or default_scheduler,
            output_format=request.output_format,
            preview_every=request.preview_every,
            keep_pixels=request.grid,
        )
        for index, seed in enumerate(seeds)
    ]
