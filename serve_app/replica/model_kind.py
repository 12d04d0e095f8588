"""Recognises the kind of model in a single file by its keys."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from serve_app.errors import CheckpointError
from serve_app.replica.architecture import FIRST_LAYER, LAST_LAYER
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
_LATENT_CHANNELS = 4
_INPAINTING_CHANNELS = 2 * _LATENT_CHANNELS + 1

# What to call a file with such a key, the most telling first.
_SIGNS: Mapping[str, str] = {
    r".*(lora_(A|B|up|down|mid)\b|\blora\.(up|down)\b|hada_w|lokr_w|oft_(diag|blocks)|dora_scale)": "a LoRA, "
    "which belongs in adapters.path",
    r"control_model\.|.*(controlnet_cond_embedding|input_hint_block)": "a ControlNet",
    r"ip_adapter\.|image_proj\.": "an IP-Adapter",
    r"(clip_l|clip_g|emb_params|string_to_param)$": "a textual inversion embedding",
    r"conditioner\.embedders\.0\.model\.": "an SDXL refiner",
    r"(model\.diffusion_model\.)?encoder_hid_proj\.": "Kolors",
    r"cond_stage_model\.model\.": "Stable Diffusion 2",
    r"cond_stage_model\.": "Stable Diffusion 1",
}
# The same where diffusers knows no other kind.
_PARTS: Mapping[str, str] = {
    r"(model\.diffusion_model\.)?(input_blocks|label_emb)\.|add_embedding\.|down_blocks\.": "a UNet alone",
    r"decoder\.layers\.|(taesd_decoder\.|decoder\.)?\d+\.": "a tiny VAE, which belongs in model.preview_path",
    r"(first_stage_model\.|vae\.)?(decoder|encoder)\.(conv_in|mid)": "a VAE, which belongs in model.vae_path",
    r"(\w+\.)?(text_model\.|transformer\.(resblocks|text_model)\.)": "a text encoder alone",
}
_FAMILIES = {"sd3": "Stable Diffusion 3", "flux": "Flux"}
_UNSURE = ("v1", "v2", "inpainting", "xl_")
"""How diffusers' names of kinds begin that it gives to parts of models as well, or to anything unknown."""


def check_header(path: Path, header: Header, *, other_vae: bool) -> None:
    """Raise CheckpointError if a single file is not a whole SDXL text-to-image checkpoint."""
    where = f"model.path: {path}"
    lacking = [part for part, prefixes in PREFIXES.items() if not any(key.startswith(prefixes) for key in header)]
    if lacking == ["vae"]:
        if not other_vae:
            raise CheckpointError(f"{where} has no VAE; name one in model.vae_path")
    elif lacking:
        raise CheckpointError(f"{where} is {_kind(header, lacking)}; {SUPPORTED}")
    if not other_vae and all(any(key.startswith(prefix) for key in header) for prefix in PREFIXES["vae"]):
        raise CheckpointError(f"{where} has two VAEs ({', '.join(PREFIXES['vae'])}); name one in model.vae_path")
    if FIRST_LAYER in header and LAST_LAYER in header:
        takes, returns = header[FIRST_LAYER].shape[1:2], header[LAST_LAYER].shape[:1]
        if takes and returns and (other := other_purpose(*takes, *returns)):
            raise CheckpointError(f"{where} {other}")


def other_purpose(takes: int, returns: int) -> str | None:
    """Say that a UNet takes more channels than it returns; None for text-to-image, where both are the latents.

    Also None for inpainting, where it takes a mask and what is kept of a picture as well.
    """
    if takes == returns or (takes, returns) == (_INPAINTING_CHANNELS, _LATENT_CHANNELS):
        return None
    return f"is not a text-to-image model, its UNet takes {takes} channels and returns {returns}; {SUPPORTED}"


def _kind(header: Header, lacking: Sequence[PartName]) -> str:
    """Return what to call a file that lacks parts of an SDXL checkpoint."""
    if words := _called(header, _SIGNS) or _other_family(header):
        return words
    if len(lacking) < len(PART_NAMES) - 1:
        return f"not a whole SDXL checkpoint, it has no {PART_WORDS[lacking[0]]}"
    return _called(header, _PARTS) or "of no known kind"


def _called(header: Header, signs: Mapping[str, str]) -> str | None:
    return next((words for sign, words in signs.items() if any(re.match(sign, key) for key in header)), None)


def _other_family(header: Header) -> str | None:
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type  # here: it takes seconds to import

    try:
        kind: str = infer_diffusers_model_type(header)
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError, AttributeError):
        return None  # an incomplete model lacks tensors that it reads
    if kind.startswith(_UNSURE):
        return None
    return next((words for start, words in _FAMILIES.items() if kind.startswith(start)), f"another model ({kind})")
