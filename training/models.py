"""The parts of the small SDXL, built from the config with diffusers' and transformers' classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from training.config import Config, TextConfig

_TIME_WIDTH = 32


def make_vae(model: Mapping[str, Any]) -> AutoencoderKL:
    """Return the autoencoder, 8 pixels to a latent cell, random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=1.0,
        sample_size=256,
        force_upcast=False,
        **model,
    )


def make_tiny(width: int, latent_channels: int) -> AutoencoderTiny:
    """Return the preview decoder, with the encoder that its class requires."""
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(1, 1, 1, 1),
        latent_channels=latent_channels,
        scaling_factor=1.0,
        force_upcast=False,
    )


class TextToImage(nn.Module):
    """The UNet and both text encoders, which the UNet stage trains together."""

    def __init__(self, text: CLIPTextModel, text_2: CLIPTextModelWithProjection, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text, self.text_2, self.unet = text, text_2, unet

    def encode(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the UNet's conditioning in SDXL's pipeline for token ids (batch, length).

        That is (batch, length, width) and (batch, width).
        """
        first = self.text(ids, output_hidden_states=True)
        second = self.text_2(ids, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def make_text_to_image(config: Config, vocabulary_size: int) -> TextToImage:
    """Return the UNet and both text encoders with random weights."""
    text = config.text
    return TextToImage(
        CLIPTextModel(_text_config(text, text.layers, vocabulary_size, config.data.max_tokens)),
        CLIPTextModelWithProjection(_text_config(text, text.layers_2, vocabulary_size, config.data.max_tokens)),
        UNet2DConditionModel(
            sample_size=32,
            in_channels=config.vae.model["latent_channels"],
            out_channels=config.vae.model["latent_channels"],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * text.width,
            addition_embed_type="text_time",
            addition_time_embed_dim=_TIME_WIDTH,
            projection_class_embeddings_input_dim=text.width + 6 * _TIME_WIDTH,
            use_linear_projection=True,
            **config.unet.model,
        ),
    )


def open_text_to_image(folder: Path) -> TextToImage:
    """Return those of a diffusers folder, in float32."""
    kinds = {
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "unet": UNet2DConditionModel,
    }
    return TextToImage(*(kind.from_pretrained(folder / name).float() for name, kind in kinds.items()))


def _text_config(text: TextConfig, layers: int, vocabulary_size: int, max_tokens: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=text.width,
        intermediate_size=2 * text.width,
        num_hidden_layers=layers,
        num_attention_heads=text.heads,
        projection_dim=text.width,
        max_position_embeddings=max_tokens,
        # The vocabulary ends with the start and end markers.
        bos_token_id=vocabulary_size - 2,
        eos_token_id=vocabulary_size - 1,
        pad_token_id=vocabulary_size - 1,
    )


@dataclass(frozen=True, slots=True)
class Noise:
    """The forward process of `schedule`: `signal` and `sigma` of every timestep, (1000,), squares summing to 1."""

    signal: torch.Tensor
    sigma: torch.Tensor

    def add(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the noisy latents at timesteps `t` (batch,)."""
        return self.signal[t, None, None, None] * clean + self.sigma[t, None, None, None] * noise

    def velocity(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return the target of a v-prediction UNet."""
        return self.signal[t, None, None, None] * noise - self.sigma[t, None, None, None] * clean


def make_noise(schedule: Mapping[str, Any], device: torch.device) -> Noise:
    """Return the forward process for diffusers' scheduler settings (scaled_linear)."""
    if schedule["beta_schedule"] != "scaled_linear":
        raise ValueError("schedule.beta_schedule: only scaled_linear is supported")
    betas = torch.linspace(schedule["beta_start"] ** 0.5, schedule["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    return Noise(kept.sqrt().float().to(device), (1 - kept).sqrt().float().to(device))
