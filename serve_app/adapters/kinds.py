"""Tells from a file's header what it is, and for which family of models."""

import re
from collections.abc import Collection, Mapping

from serve_app.adapters.header import Header, NoAdapter

SDXL = "SDXL"
_OTHERS_BY_WIDTH = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 1280: "SDXL's refiner"}
_WIDTHS = {**_OTHERS_BY_WIDTH, 2048: SDXL}
"""The families by the width of the prompts that their UNets are given."""

_OF_LORAS = re.compile(
    r"[._]lora[._](?:up|down|mid|A|B)\b|\.lora_(?:linear_layer|magnitude)|\.(?:hada|lokr)_[wt]|\.dora_scale$|\.diff$"
)
_PROMPT_WIDTH = re.compile(
    r"attn2[._](?:processor\.)?to_[kv](?:[._]lora)?(?:\.lora_down|\.lora_A|\.down|_lora\.down|\.hada_w[12]_b|\.diff)"
)
_LAYERS = {
    r"single_transformer_blocks|single_blocks|double_blocks": "Flux",
    r"joint_blocks|joint_transformer_blocks|add_q_proj": "Stable Diffusion 3",
    r"(?:^|\.)transformer\.|lora_transformer_|diffusion_model\.(?:layers|blocks|transformer_blocks)\.": "another "
    "kind of model",
}
"""Families by the names of layers that SDXL has not."""

_SAID = {
    r"xl.*refiner": "SDXL's refiner",
    r"xl": SDXL,
    r"sd_?v?1|stable-diffusion-v1": "Stable Diffusion 1.5",
    r"sd_?v?2|stable-diffusion-v2": "Stable Diffusion 2",
    r"sd_?3|stable-diffusion-3|stable-diffusion-v3": "Stable Diffusion 3",
    r"flux": "Flux",
}
"""Families by what metadata calls them."""
_SAYING = ("modelspec.architecture", "ss_base_model_version")

_NOT_LORAS = {
    r"lora_controlnet|control_model\.|controlnet_|input_hint_block": "is a ControlNet, which is not supported",
    r"ip_adapter|image_proj\.": "is an IP-Adapter, which is not supported",
    r"\.(?:oft_|boft_|oft_diag)|\.glora|\.a1\.weight$|\.on_input$": "is of a kind that is not supported (served are "
    "LoRA, LoCon, LoHa, LoKr and DoRA); merge it into the model with the tool that trained it",
    r"^(?:clip_[lg]|emb_params|string_to_param.*|<.*>)$": "is a textual inversion embedding, not a "
    "LoRA; write embedding:NAME in the prompt",
    r"^(?:model\.diffusion_model|conditioner|cond_stage_model)\.|^(?:unet\.)?(?:down_blocks|input_blocks)\.": "is a "
    "whole model, not a LoRA; serve it with model.path",
    r"^(?:first_stage_model\.|(?:vae\.)?(?:encoder|decoder)\.)": "is a VAE, not a LoRA",
}


def require_lora(header: Header) -> None:
    """Raise NoAdapter unless a file holds a LoRA that may be one for SDXL."""
    keys = header.shapes
    if not keys:
        raise NoAdapter("holds no weights")
    if not any(_OF_LORAS.search(key) for key in keys):
        raise NoAdapter(_first(_NOT_LORAS, keys) or "is not a LoRA: none of its tensors has the name of a LoRA's")
    if (family := family_of(header)) not in (None, SDXL):
        raise NoAdapter(f"was made for {family}, and the served model is an SDXL; choose one that was made for SDXL")


EMBEDDING = ("clip_l", "clip_g")
"""The tensors of an embedding for SDXL: (tokens, width) for each text encoder."""
_OLD_EMBEDDING = re.compile(r"^(?:emb_params|string_to_param.*|<.*>|clip_l)$")


def is_embedding(header: Header) -> bool:
    """Whether a file holds a textual inversion, for whichever model."""
    return bool(header.shapes) and all(key in EMBEDDING or _OLD_EMBEDDING.match(key) for key in header.shapes)


def require_embedding(header: Header) -> None:
    """Raise NoAdapter unless a file holds a textual inversion that may be one for SDXL."""
    if not is_embedding(header):
        raise NoAdapter("is not a textual inversion embedding; name a LoRA in `loras`")
    if set(header.shapes) != set(EMBEDDING):
        raise NoAdapter(
            "was not made for SDXL, whose embeddings hold clip_l and clip_g; choose one that was made for SDXL"
        )


def family_of(header: Header) -> str | None:
    """Return for which models a LoRA was made; None where nothing tells. Its weights count more than its words."""
    widths = {shape[1] for key, shape in header.shapes.items() if len(shape) > 1 and _PROMPT_WIDTH.search(key)}
    by_width = [_WIDTHS[width] for width in widths if width in _WIDTHS]
    if by_width:
        return by_width[0]
    if not widths and (by_layers := _first(_LAYERS, header.shapes)):
        return by_layers
    said = (header.metadata.get(name, "").lower() for name in _SAYING)
    return next((family for words in said if words and (family := _first(_SAID, [words]))), None)


def _first(kinds: Mapping[str, str], texts: Collection[str]) -> str | None:
    return next((kind for pattern, kind in kinds.items() if any(re.search(pattern, text) for text in texts)), None)
