"""VAEs in one `.safetensors` file, in the original layout or in that of diffusers."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLPipeline
from safetensors.torch import save_file

from serve_app.config import ModelConfig
from serve_app.models import PREVIEW_FOLDER
from serve_app.replica.checkpoint import load_checkpoint
from tests.single_file import original_vae

CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]


def vae_weights(vae: AutoencoderKL, layout: str) -> Weights:
    match layout:
        case "diffusers":
            return dict(vae.state_dict())
        case "original":
            return {**original_vae(vae), "loss.logvar": torch.ones(())}
        case _:
            return {f"first_stage_model.{key}": tensor for key, tensor in original_vae(vae).items()} | {
                "unet": torch.ones(1)
            }


@pytest.mark.parametrize("layout", ["diffusers", "original", "in a whole checkpoint"])
def test_a_vae_in_one_file_takes_the_place_of_the_checkpoints_own(tiny_path: Path, tmp_path: Path, layout: str) -> None:
    stock = StableDiffusionXLPipeline.from_pretrained(tiny_path, add_watermarker=False).vae
    with torch.no_grad():
        stock.decoder.conv_out.bias += 0.5
    file = tmp_path / "mine.vae.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in vae_weights(stock, layout).items()}, file)
    own, other = (load_checkpoint(ModelConfig(path=str(tiny_path), vae_path=path), CPU) for path in (None, str(file)))
    assert other.vae.state_dict().keys() == stock.state_dict().keys()
    assert not [
        key for key, tensor in stock.state_dict().items() if not torch.equal(other.vae.state_dict()[key], tensor)
    ]
    # diffusers would treat a separate VAE as that of Stable Diffusion 1, whose latents have another scale.
    assert other.vae.config.scaling_factor == own.vae.config.scaling_factor == 0.13025
    assert other.info.hash != own.info.hash


def test_the_config_beside_a_vae_is_its_own(tiny_path: Path, tmp_path: Path) -> None:
    vae = AutoencoderKL.from_pretrained(tiny_path / "vae")
    vae.register_to_config(force_upcast=False)
    vae.save_pretrained(tmp_path)
    file = (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "fp16_fix.safetensors")
    assert not load_checkpoint(ModelConfig(path=str(tiny_path), vae_path=str(file)), CPU).vae.config.force_upcast
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "SomethingElse", "scaling_factor": 9.0}))
    assert load_checkpoint(ModelConfig(path=str(tiny_path), vae_path=str(file)), CPU).vae.config.force_upcast


def tiny_weights(vae: AutoencoderTiny, layout: str) -> Weights:
    weights = dict(vae.state_dict())
    if layout == "diffusers":
        return weights
    # In the author's layout the first layer has no weights; it clamps the latents.
    decoder = {
        key.removeprefix("decoder.layers."): tensor for key, tensor in weights.items() if key.startswith("decoder.")
    }
    return {f"{layout}{int(key.split('.')[0]) + 1}.{key.split('.', 1)[1]}": tensor for key, tensor in decoder.items()}


@pytest.mark.parametrize("layout", ["diffusers", "", "decoder.", "taesd_decoder."])
def test_a_tiny_vae_in_one_file_decodes_previews(tiny_path: Path, tmp_path: Path, layout: str) -> None:
    stock = AutoencoderTiny.from_pretrained(tiny_path / PREVIEW_FOLDER)
    encoder = {} if layout in ("diffusers", "") else {layout.replace("decoder", "encoder") + "0.weight": torch.ones(1)}
    file = tmp_path / "taesdxl_decoder.safetensors"
    save_file({**tiny_weights(stock, layout), **encoder}, file)
    (tmp_path / "config.json").write_text((tiny_path / PREVIEW_FOLDER / "config.json").read_text())
    preview_vae = load_checkpoint(ModelConfig(path=str(tiny_path), preview_path=str(file)), CPU).preview_vae
    assert preview_vae is not None
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(preview_vae.decode(latents).sample, stock.decode(latents).sample)


def test_a_tiny_vae_without_a_config_has_the_usual_one(tiny_path: Path, tmp_path: Path) -> None:
    stock = AutoencoderTiny()
    file = tmp_path / "taesdxl_decoder.safetensors"
    save_file(tiny_weights(stock, ""), file)
    preview_vae = load_checkpoint(ModelConfig(path=str(tiny_path), preview_path=str(file)), CPU).preview_vae
    assert preview_vae is not None
    assert all(torch.equal(tensor, stock.state_dict()[key]) for key, tensor in preview_vae.state_dict().items())
