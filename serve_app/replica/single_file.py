"""Loads single `.safetensors` files, whose weights have the layout of the original code, with diffusers' conversions.

diffusers' own loaders of single files silently drop unknown weights and do not report missing ones. This module fills
the models itself, and refuses both. Weights keep the types of the file.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors import safe_open
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from serve_app.replica.architecture import GUIDANCE_LAYER
from serve_app.replica.model_kind import PREFIXES, PartName
from serve_app.replica.scaled_fp8 import unscaled
from serve_app.replica.sources import Part
from serve_app.replica.weight_keys import check_keys

Weights = dict[str, torch.Tensor]
_Model = TypeVar("_Model", bound=nn.Module)

# Keys of TAESD's decoder as its author publishes it, alone or with the encoder.
_TAESD = re.compile(r"(?:taesd_decoder\.|decoder\.)?(\d+)\.(.+)")


def load_text_encoder(part: Part) -> CLIPTextModel:
    """Return SDXL's first text encoder. Raises CheckpointError."""
    model = _empty(CLIPTextModel, CLIPTextConfig.from_dict(part.config))
    weights = convert_ldm_clip_checkpoint(_read(part, "text_encoder"))
    # transformers dropped the `text_model` level from this class in 5.6.
    if not hasattr(model, "text_model"):
        weights = {key.removeprefix("text_model."): tensor for key, tensor in weights.items()}
    return _filled(part, model, weights)


def load_text_encoder_2(part: Part) -> CLIPTextModelWithProjection:
    """Return SDXL's second text encoder. Raises CheckpointError."""
    model = _empty(CLIPTextModelWithProjection, CLIPTextConfig.from_dict(part.config))
    read, (prefix,) = _read(part, "text_encoder_2"), PREFIXES["text_encoder_2"]
    weights = convert_open_clip_checkpoint(model, read, prefix=prefix)
    # Without the transformer's layers: all are used, and some are split in three.
    others = {key: tensor for key, tensor in read.items() if not key.startswith(f"{prefix}transformer.")}
    return _filled(part, model, weights | _dropped(others, weights))


def load_unet(part: Part) -> UNet2DConditionModel:
    """Return the UNet. Raises CheckpointError."""
    model = _empty(UNet2DConditionModel.from_config, part.config)
    read = _read(part, "unet")
    try:
        weights = convert_ldm_unet_checkpoint(read, model.config)
    except KeyError as error:
        raise part.fault(f"lacks the UNet's {error.args[0]}") from error
    if GUIDANCE_LAYER in read:  # which diffusers' conversion does not know
        weights["time_embedding.cond_proj.weight"] = read[GUIDANCE_LAYER]
    return _filled(part, model, weights | _dropped(read, weights))


def load_vae(part: Part) -> AutoencoderKL:
    """Return the VAE. Raises CheckpointError."""
    model = _empty(AutoencoderKL.from_config, part.config)
    read = _read(part, "vae")
    if read.keys() >= model.state_dict().keys():
        return _filled(part, model, read)
    weights = convert_ldm_vae_checkpoint(read, model.config)
    return _filled(part, model, weights | _dropped(read, weights))


def load_tiny_vae(part: Part) -> AutoencoderTiny:
    """Return the decoder of a tiny VAE. Raises CheckpointError."""
    model = _empty(AutoencoderTiny.from_config, part.config)
    model.encoder = nn.Identity()
    weights: Weights = {}
    # The original's first layer clamps the latents; diffusers does that outside its layers, so indices differ by one.
    for key, tensor in _read(part).items():
        if match := _TAESD.fullmatch(key):
            key = f"decoder.layers.{int(match[1]) - 1}.{match[2]}"
        if not key.startswith(("encoder.", "taesd_encoder.")):
            weights[key] = tensor
    return _filled(part, model, weights)


def _empty(make: Callable[[Any], _Model], config: Any) -> _Model:
    with init_empty_weights():
        return make(config)


def _read(part: Part, name: PartName | None = None) -> Weights:
    """Return the tensors of a part by their keys in the file; a VAE's without the prefix."""
    with safe_open(part.files[0], "pt") as content:
        keys = list(content.keys())
        prefix = next(
            (prefix for prefix in (PREFIXES[name] if name else ()) if any(key.startswith(prefix) for key in keys)), ""
        )
        weights = {key: content.get_tensor(key) for key in keys if key.startswith(prefix)}
    if name == "vae":
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    return unscaled(part, weights)


def _dropped(read: Weights, converted: Weights) -> Weights:
    """Return the weights that a conversion has left out: conversions skip keys that the original code did not have."""
    taken = {tensor.data_ptr() for tensor in converted.values()}
    return {key: tensor for key, tensor in read.items() if tensor.data_ptr() not in taken}


def _filled(part: Part, model: _Model, weights: Weights) -> _Model:
    expected = model.state_dict()
    check_keys(
        part,
        missing=expected.keys() - weights.keys(),
        unexpected=weights.keys() - expected.keys(),
        misshapen={key for key, tensor in expected.items() if key in weights and weights[key].shape != tensor.shape},
        quantized={key for key in expected if key in weights and not weights[key].is_floating_point()},
    )
    model.load_state_dict({key: weights[key] for key in expected}, assign=True)
    return model.eval()
