"""Checkpoints that generate different pictures have different hashes; the same checkpoint always has the same hash."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import ModelConfig
from serve_app.replica import hashing, sources
from serve_app.replica.hashing import checkpoint_hash
from serve_app.replica.sources import find_sources


def hash_of(path: Path, overrides: dict[str, Any] | None = None, **settings: object) -> str:
    return checkpoint_hash(find_sources(ModelConfig(path=str(path), **settings)), overrides or {})


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def other_weights(file: Path) -> None:
    with file.open("r+b") as content:
        content.seek(-1, 2)
        content.write(b"\x7f")


UNET = Path("unet/diffusion_pytorch_model.safetensors")
CHANGES: dict[str, Callable[[Path], object]] = {
    "unet": lambda f: other_weights(f / UNET),
    "vae": lambda f: other_weights(f / "vae/diffusion_pytorch_model.safetensors"),
    "text_encoder": lambda f: other_weights(f / "text_encoder/model.safetensors"),
    "text_encoder_2": lambda f: other_weights(f / "text_encoder_2/model.safetensors"),
    "the scheduler": lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="v_prediction"),
    "an empty prompt": lambda f: edit(f / "model_index.json", force_zeros_for_empty_prompt=False),
    "a VAE's scale": lambda f: edit(f / "vae/config.json", scaling_factor=0.18215),
    "a UNet's heads": lambda f: edit(f / "unet/config.json", attention_head_dim=[4, 8]),
    "a tokenizer's padding": lambda f: edit(f / "tokenizer_2/tokenizer_config.json", pad_token="a"),  # noqa: S106, not a secret
    "a tokenizer's words": lambda f: (f / "tokenizer/tokenizer.json").write_text("{}"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_everything_that_pictures_depend_on_changes_the_hash(tiny_path: Path, copy: Path, what: str) -> None:
    assert hash_of(copy) == hash_of(tiny_path)
    CHANGES[what](copy)
    assert hash_of(copy) != hash_of(tiny_path)


def test_what_pictures_do_not_depend_on_changes_nothing(tiny_path: Path, copy: Path) -> None:
    edit(copy / "unet/config.json", _diffusers_version="0.1.0")
    edit(copy / "text_encoder/config.json", torch_dtype="float16", transformers_version="4.0.0")
    (copy / "README.md").write_text("words")
    shutil.copy(copy / UNET, copy / UNET.with_suffix(".fp16.safetensors"))
    shutil.copy(copy / UNET, copy / UNET.with_suffix(".non_ema.safetensors"))
    assert hash_of(copy) == hash_of(tiny_path)


@pytest.mark.parametrize("part", ["vae", "text_encoder_2"])
def test_parts_without_a_variant_count_too(copy: Path, part: str) -> None:
    unet = copy / UNET
    unet.rename(unet.with_suffix(".fp16.safetensors"))
    before = hash_of(copy, variant="fp16")
    other_weights(next((copy / part).glob("*.safetensors")))
    assert hash_of(copy, variant="fp16") != before


def test_settings_that_override_the_checkpoint_count(tiny_path: Path, file: Path, configs: Path) -> None:
    for path, settings in ((tiny_path, {}), (file, {"config_path": str(configs)})):
        hashes = {
            hash_of(path, overrides, **settings)
            for overrides in ({}, {"prediction_type": "v_prediction"}, {"timestep_spacing": "trailing"})
        }
        assert len(hashes) == 3


@pytest.mark.usefixtures("usual")
def test_a_files_hash_is_its_own_while_its_configs_are_the_usual_ones(file: Path, configs: Path) -> None:
    plain = hashlib.sha256(file.read_bytes()).hexdigest()[:10]
    assert hash_of(file) == plain != hash_of(file, config_path=str(configs))


@pytest.fixture
def usual(configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs of the tiny model where those of SDXL ship."""
    monkeypatch.setattr(sources, "sdxl_path", lambda: configs)


CONFIGS: dict[str, Callable[[Path], object]] = {
    "a VAE's scale": lambda f: edit(f / "vae/config.json", scaling_factor=0.5),
    "a VAE's mean": lambda f: edit(f / "vae/config.json", latents_mean=[1.0] * 4, latents_std=[2.0] * 4),
    "a text encoder's activation": lambda f: edit(f / "text_encoder/config.json", hidden_act="gelu"),
    "a text encoder's norm": lambda f: edit(f / "text_encoder_2/config.json", layer_norm_eps=0.1),
    "a UNet's heads": lambda f: edit(f / "unet/config.json", attention_head_dim=[4, 8, 8]),
    "a tokenizer's padding": lambda f: edit(f / "tokenizer_2/tokenizer_config.json", pad_token="a"),  # noqa: S106, not a secret
    "the scheduler": lambda f: edit(f / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True),
    "a scheduler that says nothing": lambda f: (f / "scheduler/scheduler_config.json").write_text(
        '{"_class_name": "EulerDiscreteScheduler"}'
    ),
    "an empty prompt": lambda f: edit(f / "model_index.json", force_zeros_for_empty_prompt=False),
}


@pytest.mark.usefixtures("usual")
@pytest.mark.parametrize("what", CONFIGS)
def test_any_change_in_named_configs_changes_a_files_hash(file: Path, configs: Path, tmp_path: Path, what: str) -> None:
    same, other = (Path(shutil.copytree(configs, tmp_path / name)) for name in ("same", "other"))
    CONFIGS[what](other)
    hashes = [hash_of(file, config_path=str(folder)) for folder in (configs, same, other)]
    assert hashes[0] == hashes[1]
    assert len({hash_of(file), *hashes}) == 3


def test_a_file_that_holds_all_models_is_read_once(file: Path, configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def noted(path: Path) -> str:
        read.append(path)
        return "0" * 64

    monkeypatch.setattr(hashing, "_sha256", noted)
    hash_of(file, config_path=str(configs))
    assert read == [file]
