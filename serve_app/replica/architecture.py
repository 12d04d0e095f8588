"""What the keys of a single file say of its UNet's architecture, which SDXL's usual config may not."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.replica.headers import Header

FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
LAST_LAYER = "model.diffusion_model.out.2.weight"
GUIDANCE_LAYER = "model.diffusion_model.time_embed.cond_proj.weight"
"""Takes the guidance scale in a UNet that is distilled to be given it, as LCM is."""

# A layer of the original's flat lists, and which of its transformer blocks a key belongs to, if to any.
_LAYER = re.compile(
    r"model\.diffusion_model\.(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:(?:\d+\.)?transformer_blocks\.(\d+)\.)?"
)
_Depths = dict[int, int]
"""The number of transformer blocks of each layer."""

_DEFAULTS = {"mid_block_type": "UNetMidBlock2DCrossAttn"}


def unet_config(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a UNet's config, changed where a file's keys say otherwise.

    So that inpainting models, SSD-1B, Vega and KOALA load with SDXL's own config. What keys do not show, such as the
    number of attention heads, stays the config's.
    """
    found = {**_inputs(header), **_blocks(header, len(config.get("block_out_channels", ())))}
    return {**config, **{key: value for key, value in found.items() if config.get(key, _DEFAULTS.get(key)) != value}}


def _inputs(header: Header) -> dict[str, int]:
    layers = {"in_channels": FIRST_LAYER, "time_cond_proj_dim": GUIDANCE_LAYER}
    shapes = {name: header[layer].shape for name, layer in layers.items() if layer in header}
    return {name: shape[1] for name, shape in shapes.items() if len(shape) > 1}


def _blocks(header: Header, levels: int) -> dict[str, Any]:
    """Return how the blocks of a UNet are arranged; nothing if its keys are incomplete, as the loader will say."""
    depths = _depths(header)
    down, middle, up = (depths[place] for place in ("input_blocks", "middle_block", "output_blocks"))
    if not levels or len(down) % levels or {*down} != {*range(len(down))} or {*up} != {*down}:
        return {}
    each = len(down) // levels
    # Going down, the first layer of each level takes the latents or halves them.
    going_down = [[down[level * each + i] for i in range(1, each)] for level in range(levels)]
    going_up = [[up[level * each + i] for i in range(each)] for level in range(levels)]
    down_depths, up_depths = ([_depth(level) for level in way] for way in (going_down, going_up))
    mirrored = up_depths == down_depths[::-1]
    attends = any(middle.values())
    return {
        "layers_per_block": each - 1,
        "down_block_types": [_kind("DownBlock2D", level) for level in going_down],
        "up_block_types": [_kind("UpBlock2D", level) for level in going_up],
        "transformer_layers_per_block": down_depths,
        "reverse_transformer_layers_per_block": None if mirrored else up_depths,
        "mid_block_type": "UNetMidBlock2DCrossAttn" if attends else "UNetMidBlock2D" if middle else None,
    }


def _depths(header: Header) -> Mapping[str, _Depths]:
    depths: dict[str, _Depths] = {"input_blocks": {}, "middle_block": {}, "output_blocks": {}}
    for match in filter(None, map(_LAYER.match, header)):
        place, layer, block = match[1], int(match[2]), int(match[3]) + 1 if match[3] else 0
        depths[place][layer] = max(depths[place].get(layer, 0), block)
    return depths


def _depth(level: Sequence[int]) -> int | list[int]:
    """Return the depths of a level as configs write them: one number if they are all the same, 1 if there are none."""
    return (level[0] or 1) if len({*level}) == 1 else [*level]


def _kind(name: str, level: Sequence[int]) -> str:
    return f"CrossAttn{name}" if any(level) else name
