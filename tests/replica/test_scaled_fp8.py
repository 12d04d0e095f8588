"""Scaled 8-bit floats are loaded as the weights they represent."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.scaled_fp8 import unscaled
from serve_app.replica.sources import Part
from tests.replica.conftest import MODELS
from tests.single_file import save_single_file

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
Weights = dict[str, torch.Tensor]
PART = Part("path", Path(), {}, [Path("model.safetensors")], single=True)


def is_layer(key: str, tensor: torch.Tensor) -> bool:
    return key.endswith(".weight") and tensor.ndim == 2 and ("diffusion_model" in key or "embedders.0" in key)


def scaled(weights: Weights) -> tuple[Weights, Weights]:
    """Return the weights with their layers as scaled 8-bit floats, and the weights that those represent."""
    stored: Weights = {
        "scaled_fp8": torch.empty(2, dtype=FP8),
        "model.diffusion_model.scaled_fp8": torch.empty(0, dtype=FP8),
    }
    meant: Weights = {}
    for key, tensor in weights.items():
        if not is_layer(key, tensor):
            stored[key] = meant[key] = tensor
            continue
        layer, scale = key.removesuffix(".weight"), tensor.abs().max() / 448
        stored |= {
            key: (tensor / scale).to(FP8),
            f"{layer}.scale_weight": scale,
            f"{layer}.scale_input": torch.ones(()),
        }
        meant[key] = stored[key].float() * scale
    return stored, meant


def load(weights: Weights, file: Path, configs: Path) -> Checkpoint:
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, file)
    return load_checkpoint(ModelConfig(path=str(file), config_path=str(configs)), CPU)


def test_a_scaled_file_is_the_model_it_represents(file: Path, configs: Path, tmp_path: Path) -> None:
    stored, meant = scaled(load_file(file))
    loaded, expected = (load(weights, tmp_path / "scaled.safetensors", configs) for weights in (stored, meant))
    for name in MODELS:
        ours, theirs = (getattr(checkpoint.pipe, name).state_dict() for checkpoint in (loaded, expected))
        assert ours.keys() == theirs.keys()
        assert not [key for key in theirs if not torch.equal(ours[key], theirs[key])]


@pytest.mark.parametrize("spelling", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")])
@pytest.mark.parametrize(
    "scale", [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([2.0, 0.5]), torch.tensor([[2.0], [0.5]])]
)
def test_weights_are_multiplied_by_their_scales(spelling: tuple[str, str], scale: torch.Tensor) -> None:
    weight = torch.tensor([[1.0, 2.0, 4.0], [-1.0, -2.0, -4.0]])
    extras = {
        f"layer.{spelling[0]}": scale,
        f"layer.{spelling[1]}": torch.tensor(9.0),
        "layer.comfy_quant": quant("float8_e4m3fn"),
    }
    plain = {"layer.bias": torch.ones(2), "other.weight": torch.ones(2)}
    read = unscaled(PART, {"layer.weight": weight.to(FP8), **extras, **plain})
    assert read.keys() == {"layer.weight", *plain}
    assert torch.equal(read["layer.weight"], weight * scale.reshape(-1, 1))
    assert all(torch.equal(read[key], tensor) for key, tensor in plain.items())


def quant(words: str) -> torch.Tensor:
    return torch.tensor(list(json.dumps({"format": words}).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"layer.comfy_quant": quant("nvfp4")},
            "holds weights quantized as nvfp4; float8_e4m3fn, float8_e5m2 are supported",
        ),
        ({"layer.comfy_quant": torch.zeros(3, dtype=torch.uint8)}, "holds weights quantized as an unknown format"),
        ({"layer.weight_scale": torch.ones(4, 4)}, "scales layer.weight by (4, 4) numbers"),
        (
            {"layer.weight_scale": torch.ones(()), "layer.weight": torch.ones(4, 4, dtype=torch.int8)},
            "scales layer.weight, which are not floats",
        ),
        ({"nothing.scale_weight": torch.ones(())}, "holds nothing.scale_weight, a scale of weights that it lacks"),
    ],
)
def test_other_scales_are_refused(weights: Weights, message: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        unscaled(PART, {"layer.weight": torch.ones(4, 4), **weights})
    assert str(refused.value).startswith(f"model.path: model.safetensors {message}")


def test_scales_in_a_folder_are_refused(copy: Path) -> None:
    file = copy / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({**weights, "mid_block.attentions.0.proj_in.scale_weight": torch.full((), 0.5)}, file)
    with pytest.raises(
        CheckpointError, match=r"its config does not have: mid_block\.attentions\.0\.proj_in\.scale_weight"
    ):
        load_checkpoint(ModelConfig(path=str(copy)), CPU)


def test_8_bit_floats_without_scales_are_read_as_they_are(
    pipe: StableDiffusionXLPipeline, configs: Path, tmp_path: Path
) -> None:
    file = tmp_path / "fp8.safetensors"
    save_single_file(pipe, file, FP8)
    loaded = load_checkpoint(ModelConfig(path=str(file), config_path=str(configs)), CPU)
    for name in MODELS:
        ours, theirs = (getattr(source, name).state_dict() for source in (loaded.pipe, pipe))
        wrong = [key for key in ours.keys() & theirs.keys() if not torch.equal(ours[key], theirs[key].to(FP8).float())]
        assert not wrong
