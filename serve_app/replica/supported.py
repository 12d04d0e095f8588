"""Checks from configs and headers whether a checkpoint can be served, before gigabytes of weights are read."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import CLIPTextConfig, CLIPTokenizer

from serve_app.errors import CheckpointError
from serve_app.replica.headers import read_header
from serve_app.replica.model_kind import PART_NAMES, PART_WORDS, SUPPORTED, other_purpose
from serve_app.replica.sources import TOKENIZERS, Sources, component_class
from serve_app.replica.weight_keys import check_keys

_CLASSES: Mapping[str, Sequence[str]] = {
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    **dict.fromkeys(TOKENIZERS, ("CLIPTokenizer", "CLIPTokenizerFast")),
}
_PIPELINES = tuple(f"StableDiffusionXL{purpose}Pipeline" for purpose in ("", "Img2Img", "Inpaint"))
"""Which a checkpoint may be made for. Others have models that would be missing, such as a ControlNet."""
# What the engine requires of a UNet's config, and what to say otherwise.
_UNET: Mapping[str, tuple[Any, str]] = {
    "addition_embed_type": ("text_time", "is not an SDXL UNet (addition_embed_type)"),
    "class_embed_type": (None, "has a class_embed_type"),
    "encoder_hid_dim_type": (None, "has an encoder_hid_dim_type"),
    "quantization_config": (None, "is quantized (quantization_config)"),
}


def check_configs(sources: Sources) -> None:
    """Raise CheckpointError if the configs are not those of SDXL text-to-image, or do not fit each other."""
    index = sources.read("model_index.json")
    kind = str(index.get("_class_name"))
    if kind not in _PIPELINES:
        raise sources.fault(f"is a {kind}; {SUPPORTED}")
    if "text_encoder" not in sources.parts and "text_encoder_2" in sources.parts:
        raise sources.fault(f"has no first text encoder, like SDXL's refiner; {SUPPORTED}")
    for name in PART_NAMES:
        if name not in sources.parts:
            advice = "; name one in model.vae_path" if name == "vae" else ""
            raise sources.fault(f"has no {PART_WORDS[name]}{advice}")
    for component, allowed in _CLASSES.items():
        if component != "vae" or sources.parts["vae"].setting != "vae_path":
            _check_class(component_class(index, component), allowed, partial(sources.fault, name=component))
    for part, allowed in ((sources.parts["vae"], _CLASSES["vae"]), (sources.preview, ("AutoencoderTiny",))):
        if part and part.config:
            _check_class(part.config.get("_class_name"), allowed, part.fault)
    _check_unet(sources)
    _check_latents(sources)


def _check_class(found: object, allowed: Sequence[str], fault: Callable[[str], CheckpointError]) -> None:
    if found not in allowed:
        raise fault(f"is {found or 'of no known class'}; {allowed[0]} is supported")


def check_files(sources: Sources) -> None:
    """Raise CheckpointError if a file of weights is damaged, quantized, or not a `.safetensors` file."""
    for part in sources.models:
        for file in part.files:
            if file == sources.path:
                continue  # a single file, whose header `find_sources` has checked
            header = read_header(part.setting, file)
            if not part.single:
                check_keys(part, quantized=[key for key, tensor in header.items() if tensor.is_integer])


def check_tokenizer(sources: Sources, name: str, tokenizer: CLIPTokenizer) -> None:
    """Raise CheckpointError if a tokenizer does not fit its text encoder."""
    config = CLIPTextConfig.from_dict(sources.parts[TOKENIZERS[name]].config)
    fault = partial(sources.fault, name=name)
    if len(tokenizer) != config.vocab_size:
        raise fault(
            f"has {len(tokenizer)} tokens, its text encoder {config.vocab_size}; "
            "tokenizer.json or vocab.json is missing or another model's"
        )
    # The encoder pools at the token that its config names; 2 means the token with the highest number, as in old CLIPs.
    if name == "tokenizer_2" and config.eos_token_id not in (2, tokenizer.eos_token_id):
        raise fault(f"ends prompts with token {tokenizer.eos_token_id}, its text encoder with {config.eos_token_id}")
    if tokenizer.model_max_length != config.max_position_embeddings:
        raise fault(
            f"does not cut prompts to the {config.max_position_embeddings} tokens of its text encoder; "
            "tokenizer_config.json is missing or another model's (model_max_length)"
        )


def _check_unet(sources: Sources) -> None:
    unet = sources.parts["unet"]
    config = unet.config
    fault = partial(sources.fault, name="unet")
    if other := other_purpose(config.get("in_channels", 4), config.get("out_channels", 4)):
        raise fault(other)
    for key, (allowed, message) in _UNET.items():
        if config.get(key) != allowed:
            raise fault(f"{message}; {SUPPORTED}")
    first, second = (sources.parts[name].config for name in ("text_encoder", "text_encoder_2"))
    wanted = {
        "cross_attention_dim": first.get("hidden_size", 512) + second.get("hidden_size", 512),
        "projection_class_embeddings_input_dim": second.get("projection_dim", 512)
        + 6 * (config.get("addition_time_embed_dim") or 0),
    }
    for key, width in wanted.items():
        if isinstance(config.get(key), int) and config[key] != width:
            advice = "; it is an SDXL refiner's" if config.get(key) in (1280, 2560) else ""
            raise fault(f"does not fit its text encoders: {key} is {config.get(key)}, theirs make {width}{advice}")


def _check_latents(sources: Sources) -> None:
    channels = sources.parts["unet"].config.get("out_channels", 4)
    for part in sources.models:
        if part.config.get("latent_channels", 4) != channels:
            raise part.fault(
                f"decodes latents of {part.config.get('latent_channels')} channels, the UNet's have {channels}"
            )
