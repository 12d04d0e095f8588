"""Files and folders that are no SDXL checkpoint, with the real names of their keys and classes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

Write = Callable[[Path], Path]
"""Writes into an empty folder and returns what to serve."""

_UNET = "model.diffusion_model."


def file_with(*keys: str, **shapes: tuple[int, ...]) -> Write:
    """Write a file with small tensors under these keys."""

    def write(folder: Path) -> Path:
        save_file({key: torch.zeros(shapes.get(key, (1,))) for key in keys}, folder / "model.safetensors")
        return folder / "model.safetensors"

    return write


def folder_of(kind: str) -> Write:
    def write(folder: Path) -> Path:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        return folder

    return write


def part(kind: str) -> Write:
    def write(folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps({"_class_name": kind}))
        return folder

    return write


def raw(content: bytes, name: str = "model.safetensors") -> Write:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


_SD1 = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
_TEXT = (
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
    "conditioner.embedders.1.model.ln_final.bias",
)

REFUSED: Mapping[str, tuple[Write, str]] = {
    "Stable Diffusion 1, folder": (folder_of("StableDiffusionPipeline"), "is a StableDiffusionPipeline"),
    "Stable Diffusion 1, single file": (
        file_with(f"{_UNET}input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight", _SD1),
        "is Stable Diffusion 1",
    ),
    "Stable Diffusion 2, single file": (
        file_with(f"{_UNET}input_blocks.0.0.weight", "cond_stage_model.model.token_embedding.weight"),
        "is Stable Diffusion 2",
    ),
    "SDXL refiner, folder": (folder_of("StableDiffusionXLImg2ImgPipeline"), "has no first text encoder"),
    "SDXL refiner, single file": (
        file_with(
            f"{_UNET}input_blocks.0.0.weight",
            "first_stage_model.decoder.conv_in.weight",
            "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias",
        ),
        "is an SDXL refiner",
    ),
    "SDXL with ControlNet, folder": (
        folder_of("StableDiffusionXLControlNetPipeline"),
        "is a StableDiffusionXLControlNetPipeline",
    ),
    "Stable Diffusion 3, folder": (folder_of("StableDiffusion3Pipeline"), "is a StableDiffusion3Pipeline"),
    "Stable Diffusion 3.5, single file": (
        file_with(f"{_UNET}joint_blocks.37.x_block.mlp.fc1.weight", "first_stage_model.decoder.conv_in.weight"),
        "is Stable Diffusion 3",
    ),
    "Flux, folder": (folder_of("FluxPipeline"), "is a FluxPipeline"),
    "Flux, single file": (
        file_with("double_blocks.0.img_attn.norm.key_norm.scale", "img_in.weight"),
        "is Flux",
    ),
    "Kolors, folder": (folder_of("KolorsPipeline"), "is a KolorsPipeline"),
    "Kolors, single file": (file_with("encoder_hid_proj.weight", "down_blocks.0.resnets.0.conv1.weight"), "is Kolors"),
    "SDXL without its second text encoder": (
        file_with(f"{_UNET}input_blocks.0.0.weight", _TEXT[0], "first_stage_model.decoder.conv_in.weight"),
        "is not a whole SDXL checkpoint, it has no second text encoder",
    ),
    "SDXL without a VAE, and no `vae_path`": (
        file_with(f"{_UNET}input_blocks.0.0.weight", *_TEXT),
        "has no VAE; name one in model.vae_path",
    ),
    "UNet alone, single file": (file_with(f"{_UNET}input_blocks.0.0.weight"), "is a UNet alone"),
    "UNet alone, diffusers' keys": (file_with("add_embedding.linear_1.bias", "conv_in.bias"), "is a UNet alone"),
    "UNet alone, folder": (part("UNet2DConditionModel"), "is a UNet2DConditionModel alone"),
    "VAE, single file": (file_with("decoder.conv_in.weight", "encoder.conv_in.weight"), "is a VAE, which belongs in"),
    "Tiny VAE (TAESDXL), single file": (file_with("1.weight", "3.conv.0.weight"), "is a tiny VAE, which belongs in"),
    "Text encoder, single file": (file_with("text_model.embeddings.token_embedding.weight"), "is a text encoder alone"),
    "LoRA (kohya)": (
        file_with("lora_unet_input_blocks_4_1_proj_in.lora_down.weight", "lora_te1_text_model_x.alpha"),
        "is a LoRA, which belongs in adapters.path",
    ),
    "LoRA (diffusers, PEFT)": (file_with("unet.down_blocks.1.attentions.0.proj_in.lora_A.weight"), "is a LoRA"),
    "LyCORIS (LoKr)": (file_with("lora_unet_middle_block_1_proj_in.lokr_w1"), "is a LoRA"),
    "Textual inversion embedding": (file_with("clip_l", "clip_g"), "is a textual inversion embedding"),
    "ControlNet": (file_with("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"), "is a ControlNet"),
    "IP-Adapter": (file_with("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "is an IP-Adapter"),
    "Anything else in `.safetensors`": (file_with("hello"), "is of no known kind"),
    "Pickled file (`.ckpt`)": (raw(b"\x80\x02}q\x00.", "model.ckpt"), "holds pickled weights"),
    "GGUF": (raw(b"GGUF\x03\0\0\0"), "is a GGUF file"),
    "File of no bytes": (raw(b""), "is empty"),
    "File cut off": (raw((2**10).to_bytes(8, "little") + b'{"a":'), "is not a complete .safetensors file"),
}
"""By what the table in docs/models.md calls them, with what the refusal says."""
