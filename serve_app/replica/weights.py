"""The models of a checkpoint, from wherever their weights lie: whole, or refused."""

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from serve_app.errors import first_line
from serve_app.replica.keys import check_keys
from serve_app.replica.kinds import PartName
from serve_app.replica.original import load_text_encoder, load_text_encoder_2, load_tiny_vae, load_unet, load_vae
from serve_app.replica.sources import Part, Sources
from serve_app.replica.supported import check_tokenizer

_SINGLE = {"text_encoder": load_text_encoder, "text_encoder_2": load_text_encoder_2, "unet": load_unet, "vae": load_vae}
_FOLDER = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}


def load_part(name: PartName, part: Part, dtype: torch.dtype) -> Any:
    """Return a model of a checkpoint on the CPU. Raises CheckpointError."""
    if part.single:
        return _SINGLE[name](part, dtype)
    tiny = part.config.get("_class_name") == AutoencoderTiny.__name__
    return _from_folder(AutoencoderTiny if tiny else _FOLDER[name], part, dtype)


def load_tokenizer(sources: Sources, name: str) -> CLIPTokenizer:
    """Return a tokenizer that fits its text encoder. Raises CheckpointError."""
    try:
        tokenizer = CLIPTokenizer.from_pretrained(sources.root / name)
    except Exception as error:  # its files are parsed by a library that raises bare exceptions
        raise sources.fault(f"is no tokenizer that can be loaded ({first_line(error)})", name) from error
    check_tokenizer(sources, name, tokenizer)
    return tokenizer


def load_preview_vae(part: Part, dtype: torch.dtype) -> AutoencoderTiny:
    """Return the decoder of a tiny VAE on the CPU. Raises CheckpointError."""
    vae = load_tiny_vae(part, dtype) if part.single else _from_folder(AutoencoderTiny, part, dtype, unused="encoder.")
    vae.encoder = nn.Identity()
    return vae


def _from_folder(cls: Any, part: Part, dtype: torch.dtype, unused: str = " ") -> Any:
    """Return a model by its library's own loader; `unused` begins the names of weights that may be missing."""
    try:
        # Loaded in spite of wrong shapes, which are then named here.
        model, info = cls.from_pretrained(
            part.folder,
            dtype=dtype,
            variant=part.variant,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, NotImplementedError, SafetensorError) as error:
        raise part.fault(f"cannot be loaded as {cls.__name__} ({first_line(error)})") from error
    check_keys(
        part,
        missing=[key for key in info["missing_keys"] if not key.startswith(unused)],
        unexpected=info["unexpected_keys"],
        misshapen=[key for key, *_ in info["mismatched_keys"]],
    )
    return model
