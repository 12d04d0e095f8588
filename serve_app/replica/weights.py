"""Loads the models of a checkpoint, and refuses those whose weights are incomplete."""

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from serve_app.models import sdxl_path
from serve_app.models.clip import clip_tokenizer
from serve_app.replica.headers import read_header
from serve_app.replica.model_kind import PartName
from serve_app.replica.placing import Placer
from serve_app.replica.refusals import refused
from serve_app.replica.single_file import load_text_encoder, load_text_encoder_2, load_tiny_vae, load_unet, load_vae
from serve_app.replica.sources import Part, Sources
from serve_app.replica.supported import check_tokenizer
from serve_app.replica.weight_keys import check_keys

_SINGLE = {"text_encoder": load_text_encoder, "text_encoder_2": load_text_encoder_2, "unet": load_unet, "vae": load_vae}
_FOLDER = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}

_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_part(name: PartName, part: Part, placer: Placer) -> Any:
    """Load a model of a checkpoint, which is there when the placer has placed it. Raises CheckpointError."""
    tiny = part.config.get("_class_name") == AutoencoderTiny.__name__
    cls = AutoencoderTiny if tiny else _FOLDER[name]
    with refused(part.fault, f"cannot be loaded as {cls.__name__}"):
        model: Any = _SINGLE[name](part) if part.single else _from_folder(cls, part, placer.dtype)
        placer.place(model)
    return model


def load_tokenizer(sources: Sources, name: str) -> CLIPTokenizer:
    """Return a tokenizer that fits its text encoder. Raises CheckpointError."""
    folder = sources.root / name
    if sources.root == sdxl_path():
        return clip_tokenizer(name)
    if not folder.is_dir():  # transformers would treat it as a hub id
        raise sources.fault("is not a folder; the tokenizer's files belong there", name)
    with refused(partial(sources.fault, name=name), "is not a tokenizer that can be loaded"):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        check_tokenizer(sources, name, tokenizer)
    return tokenizer


def load_scheduler(sources: Sources) -> SchedulerMixin:
    """Return the checkpoint's own scheduler. Raises CheckpointError."""
    name = sources.scheduler_class
    fault = partial(sources.fault, name="scheduler")
    with refused(fault, f"cannot be loaded as {name}"):
        cls: Any = getattr(diffusers, str(name), None)
        if SchedulerMixin not in getattr(cls, "__mro__", ()):
            raise fault(f"is {name or 'of no known class'}; name a scheduler of diffusers in model_index.json")
        return cls.from_config(sources.scheduler_config)


def load_preview_vae(part: Part, placer: Placer) -> AutoencoderTiny:
    """Load the decoder of a tiny VAE, which is there when the placer has placed it. Raises CheckpointError."""
    with refused(part.fault, f"cannot be loaded as {AutoencoderTiny.__name__}"):
        vae = load_tiny_vae(part) if part.single else _from_folder(AutoencoderTiny, part, placer.dtype, "encoder.")
        vae.encoder = nn.Identity()
        placer.place(vae)
    return vae


def _from_folder(cls: Any, part: Part, dtype: torch.dtype, unused: str = " ") -> Any:
    """Load a model with its library's own loader. Weights whose name begins with `unused` may be missing."""
    # The library accepts wrong shapes here, so that `check_keys` can name the weights.
    model, info = cls.from_pretrained(
        part.folder,
        dtype=_stored(part) or dtype,
        variant=part.variant,
        use_safetensors=True,
        low_cpu_mem_usage=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    check_keys(
        part,
        missing=[key for key in info["missing_keys"] if not key.startswith(unused)],
        unexpected=info["unexpected_keys"],
        misshapen=[key for key, *_ in info["mismatched_keys"]],
    )
    return model


def _stored(part: Part) -> torch.dtype | None:
    """Return the type that all weights of a part have, None if they differ. Read as it, they are not copied."""
    tensors = [tensor for file in part.files for tensor in read_header(part.setting, file).values()]
    types = {tensor.dtype for tensor in tensors if not tensor.is_integer}
    return _STORED.get(types.pop()) if len(types) == 1 else None
