"""Sample grids during training: 20 Euler steps with guidance, as in the service."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler

from training.models import TextToImage

GRID_PROMPTS = (
    "a red apple",
    "cat face",
    "a rocket on a sky blue background",
    "octopus",
    "glossy pizza",
    "a happy cat on pink",
    "flat style ghost on a purple background",
    "grinning face with smiling eyes",
    "hiking boot",
    "astronaut",
    "a sunflower on a green background",
    "police car , cartoon style",
    "birthday cake",
    "simple dragon",
    "guitar on yellow",
    "a castle",
)


@torch.inference_mode()
def sample(
    model: TextToImage,
    vae: AutoencoderKL,
    ids: torch.Tensor,
    schedule: Mapping[str, Any],
    canvas: int,
    seeds: int,
    steps: int = 20,
    guidance: float = 3.0,
) -> list[torch.Tensor]:
    """Generate each caption of `ids` (captions, length) with `seeds` seeds.

    Return (captions, 3, canvas, canvas) for each seed, -1 to 1.
    """
    device, captions = ids.device, len(ids)
    scheduler = EulerDiscreteScheduler(**schedule)
    scheduler.set_timesteps(steps, device=device)
    tokens, pooled = (e.repeat(seeds, *[1] * (e.ndim - 1)) for e in model.encode(ids))
    tokens, pooled = (torch.cat([torch.zeros_like(e), e]) for e in (tokens, pooled))
    sizes = torch.tensor([[canvas, canvas, 0, 0, canvas, canvas]], device=device, dtype=torch.float32).expand(
        len(tokens), 6
    )
    shape = (captions, model.unet.config.in_channels, canvas // 8, canvas // 8)
    starts = [
        torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device) for seed in range(seeds)
    ]
    latents = torch.cat(starts) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(torch.cat([latents] * 2), t)
        output = model.unet(
            scaled, t, tokens, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}, return_dict=False
        )[0]
        without, with_caption = output.chunk(2)
        latents = scheduler.step(without + guidance * (with_caption - without), t, latents, return_dict=False)[0]
    pictures = torch.cat([vae.decode(chunk).sample for chunk in latents.split(16)])
    return list(pictures.split(captions))
