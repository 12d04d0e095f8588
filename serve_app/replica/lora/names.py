"""The spellings under which files name the model's layers.

Trainers use diffusers' names or those of the original code (sgm), with dots or with underscores. A spelling is a name
with underscores alone.
"""

import re
from collections.abc import Collection, Iterator, Mapping

_OUTSIDE = {
    "conv_in": "input_blocks_0_0",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
}
_IN_RESNETS = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
# How diffusers once named the attention of text encoders.
_OLD_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
_BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)")


def spellings_of_unet(names: Collection[str]) -> Mapping[str, str]:
    """Return the UNet's layers by their spellings."""
    layers = len({name.split(".")[3] for name in names if name.startswith("down_blocks.0.resnets.")})
    with_attention = {name.split(".")[1] for name in names if re.match(r"up_blocks\.\d+\.attentions", name)}
    spelled = {}
    for name in names:
        for spelling in (name, _sgm(name, layers, with_attention)):
            spelled[plain(spelling)] = name
            spelled[plain(re.sub(r"to_out\.0$", "to_out", spelling))] = name
    return spelled


def spellings_of_text_encoder(names: Collection[str]) -> Mapping[str, str]:
    """Return a text encoder's layers by their spellings. Whether they start with `text_model` depends on versions."""
    spelled = {}
    for name in names:
        inner = name.removeprefix("text_model.")
        for spelling in (inner, *_old(inner)):
            spelled[plain(spelling)] = spelled[plain(f"text_model.{spelling}")] = name
    return spelled


def plain(name: str) -> str:
    """Return a name as a spelling."""
    return name.replace(".processor.", ".").replace(".", "_")


def _old(name: str) -> Iterator[str]:
    stem, _, last = name.rpartition(".")
    if last in _OLD_ATTENTION:
        yield f"{stem}.{_OLD_ATTENTION[last]}"


def _sgm(name: str, layers: int, with_attention: Collection[str]) -> str:
    """Return a layer's name in the original code, where the blocks of a UNet have running numbers."""
    if not (match := _BLOCK.fullmatch(name)):
        return _OUTSIDE.get(name, name)
    where, block, kind, index, inner = match[1], match[2], match[3], int(match[4]), match[5]
    inner = _IN_RESNETS.get(inner, inner)
    if where == "mid_block":
        return f"middle_block_{2 * index + (kind == 'attentions')}_{inner}"
    first = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks_{1 + first + layers}_0_op"
    if kind == "upsamplers":
        return f"output_blocks_{first + layers}_{1 + (block in with_attention)}_{inner}"
    blocks, number = ("input_blocks", 1 + first + index) if where == "down_blocks" else ("output_blocks", first + index)
    return f"{blocks}_{number}_{int(kind == 'attentions')}_{inner}"
