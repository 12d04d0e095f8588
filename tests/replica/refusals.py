"""Checkpoints to spoil, and the sentence with which they are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.replica.checkpoint import find_supported, load_checkpoint

CPU = torch.device("cpu")
UNET = Path("unet/diffusion_pytorch_model.safetensors")
Weights = dict[str, torch.Tensor]


def refusal(path: Path | str, **settings: object) -> str:
    """Return the sentence with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(ModelConfig(path=str(path), **settings), CPU)
    message = str(refused.value)
    assert message.startswith("model.")
    assert "\n" not in message
    return message


def early_refusal(path: Path, **settings: object) -> str:
    """Return the sentence with which a checkpoint is refused before any weights are read."""
    with pytest.raises(CheckpointError) as refused:
        look_at(ModelConfig(path=str(path), **settings))
    assert refusal(path, **settings) == str(refused.value)
    return str(refused.value)


def look_at(config: ModelConfig) -> None:
    find_supported(config)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change(file: Path, act: Callable[[Weights], object]) -> None:
    """Change the weights in a file."""
    weights = load_file(file)
    act(weights)
    save_file(weights, file)


def extra_weights(extra: Weights) -> Callable[[Weights], object]:
    return lambda weights: weights.update(extra)


def without(prefix: str) -> Callable[[Weights], None]:
    def remove(weights: Weights) -> None:
        for key in [key for key in weights if key.startswith(prefix)]:
            del weights[key]

    return remove
