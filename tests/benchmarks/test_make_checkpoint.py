"""A checkpoint of the full architecture is too large for a test: its structure is checked."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.make_checkpoint import architecture


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_architecture_is_sdxls() -> None:
    with torch.device("meta"):
        assert parameters(UNet2DConditionModel.from_config(architecture("unet"))) == 2_567_463_684
        assert parameters(AutoencoderKL.from_config(architecture("vae"))) == 83_653_863
        assert parameters(AutoencoderTiny.from_config(architecture("preview_vae"))) == 2_445_063
        assert parameters(CLIPTextModel(CLIPTextConfig(**architecture("text_encoder")))) == 123_060_480
        assert parameters(CLIPTextModelWithProjection(CLIPTextConfig(**architecture("text_encoder_2")))) == 694_659_840
