"""Writes LoRAs with random weights."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_RANK = 4


def save_lora(model: Path, file: Path, seed: int, size: float = 0.3, layers: str = "attn") -> Path:
    """Write a LoRA of a model's linear layers with `layers` in their names, by the names that PEFT gives."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    with safe_open(model / "unet" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        for key in weights.keys():  # noqa: SIM118, not a mapping
            shape = weights.get_slice(key).get_shape()
            if layers in key and key.endswith(".weight") and len(shape) == 2:
                layer, (outputs, inputs) = f"unet.{key.removesuffix('.weight')}", shape
                down = torch.randn(_RANK, inputs, generator=generator) * size / inputs**0.5
                tensors[f"{layer}.lora_A.weight"] = down
                tensors[f"{layer}.lora_B.weight"] = torch.randn(outputs, _RANK, generator=generator) * size
    save_file(tensors, file)
    return file
