"""diffusers' pipeline as documented. Every peer uses it."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline


def load_pipeline(checkpoint: Path, device: str, half: torch.dtype) -> Any:
    """Return diffusers' pipeline on `device`, in `half` precision on a GPU and in float32 on the CPU."""
    variant = "fp16" if any(checkpoint.glob("unet/*.fp16.safetensors")) else None
    dtype = torch.float32 if device == "cpu" else half
    pipe = StableDiffusionXLPipeline.from_pretrained(
        checkpoint, dtype=dtype, variant=variant, use_safetensors=True, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
