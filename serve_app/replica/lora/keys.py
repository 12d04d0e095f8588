"""What the keys of a file mean: of which component and layer each is a part, and which part."""

from collections.abc import Mapping
from enum import StrEnum

from serve_app.replica.lora.names import plain


class Part(StrEnum):
    """A tensor's part in what an adapter changes of a layer."""

    UP = "up"
    DOWN = "down"
    MID = "mid"
    ALPHA = "alpha"
    DORA_SCALE = "dora_scale"
    MAGNITUDE = "magnitude"
    DIFF = "diff"
    HADA_W1_A = "hada_w1_a"
    HADA_W1_B = "hada_w1_b"
    HADA_T1 = "hada_t1"
    HADA_W2_A = "hada_w2_a"
    HADA_W2_B = "hada_w2_b"
    HADA_T2 = "hada_t2"
    LOKR_W1 = "lokr_w1"
    LOKR_W1_A = "lokr_w1_a"
    LOKR_W1_B = "lokr_w1_b"
    LOKR_W2 = "lokr_w2"
    LOKR_W2_A = "lokr_w2_a"
    LOKR_W2_B = "lokr_w2_b"
    LOKR_T2 = "lokr_t2"


_LYCORIS = {f".{part}": part for part in Part if part.startswith(("hada_", "lokr_"))}
_ENDINGS: Mapping[str, Part] = {
    # kohya
    ".lora_down.weight": Part.DOWN,
    ".lora_up.weight": Part.UP,
    ".lora_mid.weight": Part.MID,
    ".alpha": Part.ALPHA,
    ".dora_scale": Part.DORA_SCALE,
    ".diff": Part.DIFF,
    # PEFT
    ".lora_A.weight": Part.DOWN,
    ".lora_B.weight": Part.UP,
    ".lora_magnitude_vector": Part.MAGNITUDE,
    ".lora_magnitude_vector.weight": Part.MAGNITUDE,
    # diffusers: today's, of text encoders, and the oldest
    ".lora.down.weight": Part.DOWN,
    ".lora.up.weight": Part.UP,
    ".lora_linear_layer.down.weight": Part.DOWN,
    ".lora_linear_layer.up.weight": Part.UP,
    "_lora.down.weight": Part.DOWN,
    "_lora.up.weight": Part.UP,
    **_LYCORIS,
}
_COMPONENTS = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lycoris_": "unet",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
# Where a trainer's own model held the one that was trained.
_WRAPPERS = ("base_model.model.", "diffusion_model.", "model.diffusion_model.")


def split(key: str) -> tuple[str, Part] | None:
    """Return a key's layer, as the file names it, and its part of it; None if it has no ending that is known."""
    return next(((key.removesuffix(end), part) for end, part in _ENDINGS.items() if key.endswith(end)), None)


def component_of(layer: str) -> tuple[str, str]:
    """Return a layer's component, the UNet unless the name says another, and its spelling there."""
    layer = _unwrapped(layer)
    component = "unet"
    for start, named in _COMPONENTS.items():
        if layer.startswith(start):
            component, layer = named, _unwrapped(layer.removeprefix(start))
            break
    return component, plain(layer)


def _unwrapped(layer: str) -> str:
    for wrapper in _WRAPPERS:
        layer = layer.removeprefix(wrapper)
    return layer
