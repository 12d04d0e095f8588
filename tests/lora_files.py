"""Writes LoRAs as trainers do: in each format that people have, with small random weights."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.single_file import original_unet_names

Tensors = dict[str, Tensor]

ATTENTION = r"(down_blocks\.1|mid_block).*\.attn[12]\.to_(q|k|v|out\.0)$"
CONVOLUTIONS = r"(down_blocks\.1|up_blocks\.0).*\.(conv[12]|conv_shortcut|conv)$"
IN_TEXT_ENCODERS = r"layers\.0\.(self_attn\.\w+_proj|mlp\.fc\d)$"
RANK = 4


def save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def layers(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """Return the layers with weights whose names match."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and re.search(pattern, name)
    }


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return small random numbers, others for other shapes."""
    generator = torch.Generator().manual_seed(seed + sum(n * 31**i for i, n in enumerate(shape)))
    return torch.randn(shape, generator=generator) * 0.2


def low_rank(weight: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return LoRA's `up` and `down` for a weight."""
    rows, inputs, *kernel = weight.shape
    return noise(rows, RANK, *[1] * len(kernel), seed=seed), noise(RANK, inputs, *kernel, seed=seed + 1)


def kohya(
    models: Mapping[str, nn.Module], pattern: str = ATTENTION, *, original: bool = True, seed: int = 0
) -> Tensors:
    """Return a LoRA as sd-scripts writes it, with the original code's names of the UNet's layers or with diffusers'."""
    names = original_unet_names(models["unet"]) if original else {}
    tensors: Tensors = {}
    for name, layer in layers(models["unet"], pattern).items():
        _add_kohya(tensors, f"lora_unet_{names.get(name, name)}", layer, seed)
    for prefix, component in (("lora_te1", "text_encoder"), ("lora_te2", "text_encoder_2")):
        if component in models:
            for name, layer in layers(models[component], IN_TEXT_ENCODERS).items():
                _add_kohya(tensors, f"{prefix}_text_model.{name.removeprefix('text_model.')}", layer, seed)
    return tensors


def _add_kohya(tensors: Tensors, name: str, layer: nn.Module, seed: int) -> None:
    key = name.replace(".", "_")
    tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"] = low_rank(_weight(layer), seed)
    tensors[f"{key}.alpha"] = torch.tensor(2.0)


def dotted(
    model: nn.Module, up: str, down: str, pattern: str = ATTENTION, prefix: str = "unet.", dora: str = ""
) -> Tensors:
    """Return a LoRA of a component under its layers' own names."""
    tensors: Tensors = {}
    for name, layer in layers(model, pattern).items():
        weight = _weight(layer)
        tensors[f"{prefix}{name}{up}"], tensors[f"{prefix}{name}{down}"] = low_rank(weight)
        if dora:
            lengths = weight.detach().flatten(1).norm(dim=1) * 1.1
            tensors[f"{prefix}{name}{dora}"] = lengths if weight.ndim == 2 else lengths[None, :, None, None]
    return tensors


def peft(model: nn.Module, pattern: str = ATTENTION, prefix: str = "unet.", dora: bool = False) -> Tensors:
    magnitude = ".lora_magnitude_vector" if dora else ""
    return dotted(model, ".lora_B.weight", ".lora_A.weight", pattern, prefix, magnitude)


def oldest(unet: nn.Module) -> Tensors:
    """Return a LoRA as the first versions of diffusers wrote it, when attention processors held it."""
    tensors = dotted(unet, "_lora.up.weight", "_lora.down.weight")
    return {re.sub(r"\.(to_\w+)(?:\.0)?_lora", r".processor.\1_lora", key): tensor for key, tensor in tensors.items()}


def per_layer(model: nn.Module, pattern: str, parts: Callable[[Tensor], Tensors]) -> Tensors:
    """Return what `parts` makes of each weight, in the names of sd-scripts and LyCORIS."""
    return {
        f"lora_unet_{name.replace('.', '_')}.{part}": tensor
        for name, layer in layers(model, pattern).items()
        for part, tensor in parts(_weight(layer)).items()
    }


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight
