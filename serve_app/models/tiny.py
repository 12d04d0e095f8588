"""A tiny SDXL with random weights for tests: real diffusers and transformers classes, small enough to run quickly.

It generates abstract patches, the same for the same seed.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from serve_app.models import PREVIEW_FOLDER

_NAME = "tiny-random-sdxl-1"
_TEXT_WIDTH = 32


def build(parent: Path) -> Path:
    """Return `parent/tiny-random-sdxl-1`, and create it if missing. Several processes may call this at once."""
    folder = parent / _NAME
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{_NAME}-", dir=parent))
    try:
        _save(made)
        made.chmod(0o755)
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _save(folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(_TEXT_WIDTH)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(_TEXT_WIDTH)),
            tokenizer=_tokenizer(folder / "vocabulary", pad_token="<|endoftext|>"),
            tokenizer_2=_tokenizer(folder / "vocabulary", pad_token="!"),
            unet=_unet(),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                timestep_spacing="leading",
            ),
            add_watermarker=False,
        )
        pipe.save_pretrained(folder, safe_serialization=True)
        _preview_vae().save_pretrained(folder / PREVIEW_FOLDER, safe_serialization=True)
    shutil.rmtree(folder / "vocabulary")


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        cross_attention_dim=2 * _TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=_TEXT_WIDTH + 6 * 8,
        use_linear_projection=True,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.13025,
        sample_size=256,
    )


def _preview_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )


def _text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=len(_vocabulary()) - 2,
        eos_token_id=len(_vocabulary()) - 1,
        pad_token_id=len(_vocabulary()) - 1,
    )


def _vocabulary() -> list[str]:
    """CLIP's vocabulary without merges: every byte inside a word, every byte at a word's end, and the two markers."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    # Byte-pair vocabularies write the other bytes as letters from 256 up.
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    return [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]


def _tokenizer(folder: Path, pad_token: str) -> CLIPTokenizer:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(_vocabulary())}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad_token, model_max_length=77
    )
