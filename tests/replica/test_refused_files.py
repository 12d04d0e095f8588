"""Single files that cannot be served are refused with one sentence that names the setting and the file."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.replica.checkpoint import load_checkpoint
from serve_app.replica.headers import read_header
from tests.replica.refusals import CPU, Weights, early_refusal, edit, extra_weights, refusal, without


def takes(channels: int) -> Callable[[Weights], object]:
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, channels, 3, 3)}
    return lambda weights: weights.update(first)


def refiner(weights: Weights) -> None:
    without("conditioner.")(weights)
    weights["conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"] = torch.zeros(1)


def lora(weights: Weights) -> None:
    weights.clear()
    weights["lora_unet_input_blocks_4_1_proj_in.lora_down.weight"] = torch.zeros(1)


FILES: dict[str, tuple[Callable[[Weights], object], str]] = {
    "edits pictures": (takes(8), "is not a text-to-image model, its UNet takes 8 channels and returns 4; only whole"),
    "depth": (takes(5), "is not a text-to-image model, its UNet takes 5 channels and returns 4; only whole"),
    "refiner": (refiner, "is an SDXL refiner; only whole SDXL"),
    "a LoRA": (lora, "is a LoRA, which belongs in adapters.path; only whole SDXL"),
    "no VAE": (without("first_stage_model."), "has no VAE; name one in model.vae_path"),
    "no text encoder": (without("conditioner.embedders.1."), "it has no second text encoder"),
    "no UNet": (without("model.diffusion_model."), "it has no UNet"),
    "two VAEs": (extra_weights({"vae.x": torch.zeros(1)}), "has two VAEs (vae., first_stage_model.); name one in"),
    "a mean alone": (extra_weights({"edm_mean": torch.zeros(4)}), "is an EDM model, but edm_std in it has not 4 num"),
    "no level": (
        extra_weights({"edm_vpred.sigma_max": torch.zeros(0)}),
        "is an EDM model, but edm_vpred.sigma_max in it has not 1 numbers",
    ),
    "nested": (
        lambda weights: [weights.update({f"state_dict.{key}": weights.pop(key)}) for key in [*weights]],
        "is of no known kind",
    ),
}


@pytest.fixture
def spoiled(file: Path, tmp_path: Path) -> Callable[[Callable[[Weights], object]], Path]:
    """Return a copy of the single file, changed."""

    def spoil(act: Callable[[Weights], object]) -> Path:
        weights = load_file(file)
        act(weights)
        save_file(weights, tmp_path / "spoiled.safetensors")
        return tmp_path / "spoiled.safetensors"

    return spoil


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_not_a_whole_sdxl_is_refused_before_its_weights_are_read(
    spoiled: Any, configs: Path, case: str
) -> None:
    act, message = FILES[case]
    path = spoiled(act)
    refused = early_refusal(path, config_path=str(configs))
    assert refused.startswith(f"model.path: {path} ")
    assert message in refused


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_pickle_is_refused_by_any_name(file: Path, configs: Path, tmp_path: Path, name: str) -> None:
    torch.save({"state_dict": load_file(file)}, tmp_path / name)
    refused = early_refusal(tmp_path / name, config_path=str(configs))
    assert (
        refused
        == f"model.path: {tmp_path / name} holds pickled weights, which are never loaded; convert it to .safetensors"
    )


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00", "holds pickled weights"),
        (b"\x80\x05\x95", "holds pickled weights"),
        (b"PK\x03\x04", "holds pickled weights"),
        (b"GGUF\x03\0\0\0{\0\0\0", "is a GGUF file"),
        (b"\n <!DOCTYPE html>", "is a web page"),
        # The first byte is the lowest of the header's length, so it can be anything.
        *[
            (bytes([first, 2, 4, 0, 0, 0, 0, 0]) + b'{"a', "is not a complete .safetensors file")
            for first in b"\x80<P\nG"
        ],
        (b"PK\x03\x04\0\0\0\0{", "is not a complete .safetensors file"),
        (b"\n<\4\0\0\0\0\0{", "is not a complete .safetensors file"),
        (b"\x80\x81", "is not a complete .safetensors file"),
        (b"", "is empty; download it again"),
    ],
)
def test_the_kind_of_a_file_is_named(tmp_path: Path, start: bytes, says: str) -> None:
    (tmp_path / "file").write_bytes(start)
    with pytest.raises(CheckpointError, match=rf"^model\.vae_path: {tmp_path}/file {says}"):
        read_header("vae_path", tmp_path / "file")


LAYERS = {
    "text_encoder": "conditioner.embedders.0.transformer.text_model.encoder.layers.1.mlp.fc1.weight",
    "text_encoder_2": "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_fc.weight",
    "unet": "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    "the UNet's sizes": "model.diffusion_model.label_emb.0.0.weight",
    "vae": "first_stage_model.decoder.up.1.block.0.conv1.weight",
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("fault", ["lacks", "its config does not have", "shapes differ", "quantized"])
def test_a_file_that_is_not_what_its_configs_say_is_refused(
    spoiled: Any, configs: Path, layer: str, fault: str
) -> None:
    def spoil(weights: Weights) -> None:
        match fault:
            case "lacks":
                del weights[layer]
            case "its config does not have":
                weights[layer.replace(".weight", ".oft_diag")] = torch.ones(1)
            case "quantized":
                weights[layer] = weights[layer].to(torch.int8)
            case _:
                weights[layer] = torch.cat([weights[layer], weights[layer]])

    path = spoiled(spoil)
    refused = refusal(path, config_path=str(configs))
    assert refused.startswith(f"model.path: {path} ")
    assert fault in refused


CONFIGS = "; its config is SDXL's, or that in model.config_path"


@pytest.mark.parametrize(
    ("encoder", "prefix", "norm"),
    [
        ("first", "conditioner.embedders.0.transformer.", "text_model.final_layer_norm.bias"),
        ("second", "conditioner.embedders.1.model.", "ln_final.bias"),
    ],
)
def test_the_incomplete_model_of_a_file_is_named(
    spoiled: Any, configs: Path, encoder: str, prefix: str, norm: str
) -> None:
    """The config is mentioned only for unknown weights: a config cannot cause missing weights."""
    path = spoiled(lambda weights: weights.pop(prefix + norm))
    start = f"model.path: {path} ({encoder} text encoder) "
    lacking = refusal(path, config_path=str(configs))
    assert lacking.startswith(f"{start}lacks weights: ")
    assert lacking.endswith("final_layer_norm.bias")
    path = spoiled(extra_weights({f"{prefix}foo.weight": torch.ones(1)}))
    unknown = refusal(path, config_path=str(configs))
    assert unknown.startswith(f"{start}holds weights that its config does not have: ")
    assert unknown.endswith(f"foo.weight{CONFIGS}")


@pytest.mark.parametrize(
    ("config", "changes"),
    [("vae", {"act_fn": "?"}), ("unet", {"act_fn": "?"}), ("text_encoder_2", {"hidden_act": "?"})],
)
def test_a_config_that_no_model_can_be_made_from_is_refused(
    file: Path, configs: Path, tmp_path: Path, config: str, changes: dict[str, object]
) -> None:
    others = Path(shutil.copytree(configs, tmp_path / "configs"))
    edit(others / config / "config.json", **changes)
    assert " cannot be loaded as " in refusal(file, config_path=str(others))


def test_extra_tensors_of_other_tools_are_harmless(spoiled: Any, configs: Path) -> None:
    def act(weights: Weights) -> None:
        weights["first_stage_model.loss.logvar"] = torch.ones(())
        weights["conditioner.embedders.0.transformer.text_projection.weight"] = torch.ones(32, 32)
        weights["model_ema.decay"] = torch.ones(())
        weights["alphas_cumprod"] = torch.ones(1000)

    assert load_checkpoint(ModelConfig(path=str(spoiled(act)), config_path=str(configs)), CPU)
