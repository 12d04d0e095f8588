"""Writes an SDXL pipeline as one `.safetensors` file in the original code's layout, as most fine-tunes are shipped."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

Weights = dict[str, Tensor]

_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    r"\.norm1\.": ".in_layers.0.",
    r"\.conv1\.": ".in_layers.2.",
    r"\.time_emb_proj\.": ".emb_layers.1.",
    r"\.norm2\.": ".out_layers.0.",
    r"\.conv2\.": ".out_layers.3.",
    r"\.conv_shortcut\.": ".skip_connection.",
}
_VAE = {
    r"\.mid_block\.attentions\.0\.": ".mid.attn_1.",
    r"\.mid_block\.resnets\.0\.": ".mid.block_1.",
    r"\.mid_block\.resnets\.1\.": ".mid.block_2.",
    r"\.down_blocks\.": ".down.",
    r"\.resnets\.": ".block.",
    r"\.(down|up)samplers\.0\.": r".\1sample.",
    r"\.conv_shortcut\.": ".nin_shortcut.",
    r"\.conv_norm_out\.": ".norm_out.",
    r"\.group_norm\.": ".norm.",
    r"\.to_([qkv])\.": r".\1.",
    r"\.to_out\.0\.": ".proj_out.",
}
_OPEN_CLIP = {
    r"^text_model\.embeddings\.token_embedding\.": "token_embedding.",
    r"^text_model\.embeddings\.position_embedding\.weight": "positional_embedding",
    r"^text_model\.final_layer_norm\.": "ln_final.",
    r"^text_model\.encoder\.layers\.": "transformer.resblocks.",
    r"\.layer_norm(\d)\.": r".ln_\1.",
    r"\.self_attn\.": ".attn.",
    r"\.fc1\.": ".c_fc.",
    r"\.fc2\.": ".c_proj.",
}


def save_single_file(pipe: StableDiffusionXLPipeline, file: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the four models of `pipe` to `file`, with the original's tensors that diffusers has no place for."""
    models = {
        "model.diffusion_model.": _unet(pipe.unet),
        "first_stage_model.": original_vae(pipe.vae),
        "conditioner.embedders.0.transformer.": _clip(pipe.text_encoder),
        "conditioner.embedders.1.model.": _open_clip(pipe.text_encoder_2),
        "denoiser.": {"sigmas": torch.linspace(0.03, 14.6, 1000)},
    }
    tensors = {prefix + name: tensor for prefix, weights in models.items() for name, tensor in weights.items()}
    save_file(
        {
            name: tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        },
        file,
    )


def _renamed(key: str, patterns: Mapping[str, str]) -> str:
    for pattern, replacement in patterns.items():
        key = re.sub(pattern, replacement, key)
    return key


def _unet(unet: UNet2DConditionModel) -> Weights:
    places = _UNET | _unet_blocks(unet)
    return {_original(key, places): tensor for key, tensor in unet.state_dict().items()}


def original_unet_names(unet: UNet2DConditionModel) -> Mapping[str, str]:
    """Return the original code's names of a UNet's layers with weights by diffusers' names."""
    places = _UNET | _unet_blocks(unet)
    weights = (key for key in unet.state_dict() if key.endswith(".weight"))
    return {key.removesuffix(".weight"): _original(key, places).removesuffix(".weight") for key in weights}


def _original(key: str, places: Mapping[str, str]) -> str:
    old = next(old for old in places if key.startswith(f"{old}."))
    inside = key.removeprefix(old)
    return places[old] + (_renamed(inside, _UNET_RESNET) if ".resnets." in key else inside)


def _unet_blocks(unet: UNet2DConditionModel) -> dict[str, str]:
    """Return where the original's flat lists hold each layer.

    A downsampler is an entry of its own, an upsampler shares the last of its block.
    """
    places: dict[str, str] = {}
    down, up = unet.config.layers_per_block, unet.config.layers_per_block + 1
    for i in range(len(unet.down_blocks)):
        first = 1 + i * (down + 1)
        places |= {f"down_blocks.{i}.resnets.{j}": f"input_blocks.{first + j}.0" for j in range(down)}
        places |= {f"down_blocks.{i}.attentions.{j}": f"input_blocks.{first + j}.1" for j in range(down)}
        places[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{first + down}.0.op"
    for i, block in enumerate(unet.up_blocks):
        places |= {f"up_blocks.{i}.resnets.{j}": f"output_blocks.{i * up + j}.0" for j in range(up)}
        places |= {f"up_blocks.{i}.attentions.{j}": f"output_blocks.{i * up + j}.1" for j in range(up)}
        places[f"up_blocks.{i}.upsamplers.0.conv"] = (
            f"output_blocks.{i * up + up - 1}.{1 + hasattr(block, 'attentions')}.conv"
        )
    return places


def original_vae(vae: AutoencoderKL) -> Weights:
    """Return the weights of a VAE in the layout of the original code, without a prefix."""
    last = len(vae.decoder.up_blocks) - 1

    def name(key: str) -> str:
        # The original numbers the decoder's levels from the picture inwards, diffusers in the order of computing.
        key = re.sub(r"\.up_blocks\.(\d+)\.", lambda match: f".up.{last - int(match[1])}.", key)
        return _renamed(key, _VAE)

    # The original's attention is made of 1 x 1 convolutions.
    return {
        name(key): tensor[:, :, None, None] if ".attentions." in key and tensor.ndim == 2 else tensor
        for key, tensor in vae.state_dict().items()
    }


def _clip(encoder: CLIPTextModel) -> Weights:
    # transformers dropped the `text_model` level from this class in 5.6.
    weights = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in encoder.state_dict().items()}
    return {**weights, "text_model.embeddings.position_ids": torch.arange(77)[None]}


def _open_clip(encoder: CLIPTextModelWithProjection) -> Weights:
    weights = dict(encoder.state_dict())
    renamed = {"logit_scale": torch.tensor(4.6052), "text_projection": weights.pop("text_projection.weight").T}
    for key in [key for key in weights if ".q_proj." in key]:
        fused = torch.cat([weights.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"])
        weights[re.sub(r"q_proj\.", "in_proj_", key)] = fused
    return {**renamed, **{_renamed(key, _OPEN_CLIP): tensor for key, tensor in weights.items()}}
