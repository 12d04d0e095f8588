"""Recognises the kind of model in a single file by its keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type

from serve_app.errors import CheckpointError
from serve_app.replica.headers import Header

PartName = Literal["text_encoder", "text_encoder_2", "unet", "vae"]
PART_NAMES: tuple[PartName, ...] = get_args(PartName)

PART_WORDS: Mapping[PartName, str] = {
    "text_encoder": "first text encoder",
    "text_encoder_2": "second text encoder",
    "unet": "UNet",
    "vae": "VAE",
}
PREFIXES: Mapping[PartName, tuple[str, ...]] = {
    "text_encoder": ("conditioner.embedders.0.transformer.",),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
    "unet": ("model.diffusion_model.",),
    "vae": ("vae.", "first_stage_model."),
}
"""Prefixes of a part's keys in a whole checkpoint. The first one found counts, as in diffusers."""

SUPPORTED = "only whole SDXL text-to-image checkpoints are supported"
_KINDS = {
    "xl_base": "not a whole SDXL checkpoint",
    "xl_refiner": "an SDXL refiner",
    "v1": "not an SDXL checkpoint, but Stable Diffusion 1, a LoRA, or one model of several",
    "v2": "Stable Diffusion 2",
}
_FIRST_LAYER, _LAST_LAYER = "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.weight"
_LATENT_CHANNELS = 4
INPAINTING_CHANNELS = 2 * _LATENT_CHANNELS + 1

USUAL_CONFIGS: str = DIFFUSERS_DEFAULT_PIPELINE_PATHS["xl_base"]["pretrained_model_name_or_path"]
"""The hub id whose configs and tokenizers are used for a whole SDXL checkpoint."""


def check_header(path: Path, header: Header, *, other_vae: bool) -> None:
    """Raise CheckpointError if a single file is not a whole SDXL text-to-image checkpoint."""
    where = f"model.path: {path}"
    lacking = [part for part, prefixes in PREFIXES.items() if not any(key.startswith(prefixes) for key in header)]
    if lacking == ["vae"]:
        if not other_vae:
            raise CheckpointError(f"{where} has no VAE; name one in model.vae_path")
    elif lacking:
        raise CheckpointError(f"{where} is {_kind(header)}, it has no {PART_WORDS[lacking[0]]}; {SUPPORTED}")
    if _FIRST_LAYER in header and _LAST_LAYER in header:
        takes, returns = header[_FIRST_LAYER].shape[1:2], header[_LAST_LAYER].shape[:1]
        if takes and returns and (other := other_purpose(*takes, *returns)):
            raise CheckpointError(f"{where} {other}")


def is_inpainting(header: Header) -> bool:
    """Return whether the UNet of a single file is for inpainting."""
    return _FIRST_LAYER in header and header[_FIRST_LAYER].shape[1:2] == (INPAINTING_CHANNELS,)


def other_purpose(takes: int, returns: int) -> str | None:
    """Say that a UNet takes more channels than it returns; None for text-to-image, where both are the latents.

    Also None for inpainting, where it takes a mask and what is kept of a picture as well.
    """
    if takes == returns or (takes, returns) == (INPAINTING_CHANNELS, _LATENT_CHANNELS):
        return None
    return f"is not a text-to-image model, its UNet takes {takes} channels and returns {returns}; {SUPPORTED}"


def _kind(header: Header) -> str:
    try:
        kind = infer_diffusers_model_type(header)
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError):  # an incomplete model lacks tensors it reads
        return _KINDS["v1"]
    return _KINDS.get(kind, f"another kind of model ({kind})")
