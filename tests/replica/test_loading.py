"""Checks of a replica's settings that need its files."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL

from serve_app.config import AppArgs, EngineConfig, ModelConfig
from serve_app.errors import CheckpointError
from serve_app.replica.compilation import _keep, use_compile_cache
from serve_app.replica.loading import check_used, load


def config(path: Path | str, **settings: Any) -> ModelConfig:
    return ModelConfig(path=str(path), **settings)


@pytest.mark.parametrize(
    ("path", "setting", "kind"),
    [
        ("embedded", "revision", "the embedded model"),
        ("embedded", "variant", "the embedded model"),
        ("embedded", "config_path", "the embedded model"),
        ("folder", "revision", "a local folder"),
        ("folder", "config_path", "a local folder"),
        ("file.safetensors", "revision", "a single file"),
        ("file.safetensors", "variant", "a single file"),
        ("owner/name", "config_path", "a hub id"),
    ],
)
def test_a_setting_without_effect_on_such_a_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, setting: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file.safetensors").touch()
    with pytest.raises(CheckpointError, match=rf"^model\.{setting}: fp16 has no effect on .*{kind}; leave it out"):
        check_used(config(path, **{setting: "fp16"}))
    with pytest.raises(CheckpointError, match=rf"^model\.{setting}: "):
        load(AppArgs(model=config(path, **{setting: "fp16"})))


def test_a_setting_with_an_effect_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").touch()
    for taken in (
        config("embedded", name="mine", vae_path="owner/vae"),
        config(tmp_path, variant="fp16"),
        config(tmp_path / "file.safetensors", config_path="owner/name"),
        config("owner/name", revision="main", variant="fp16"),
        config("/no/such/file.safetensors", config_path="owner/name"),
        config("no-such/file.safetensors", config_path="owner/name"),
    ):
        check_used(taken)


def test_8_bit_floats_that_change_no_layer_are_logged(tiny_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(AppArgs(model=config(tiny_path, width=64, height=64), engine=EngineConfig(quantization="fp8")))
    assert "engine.quantization: fp8 has no effect" in caplog.text


def test_a_vae_that_cannot_decode_all_sizes_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    """A VAE that decodes a latent to 16 pixels would generate 24x24 as 16x16."""
    folder = Path(shutil.copytree(tiny_path, tmp_path / "copy"))
    given = json.loads((folder / "vae" / "config.json").read_text())
    blocks = ("block_out_channels", "down_block_types", "up_block_types")
    deeper = {key: [*given[key], given[key][-1]] for key in blocks}
    AutoencoderKL.from_config({**given, **deeper}).save_pretrained(folder / "vae")
    with pytest.raises(CheckpointError, match=r"^model\.path: its VAE decodes a latent to 16 pixels, but sizes"):
        load(AppArgs(model=config(folder)))


def test_a_cache_that_others_can_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded from it runs as code."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")
    kept = tmp_path / "parallel-sdxl"
    kept.mkdir()
    use_compile_cache(str(tmp_path))
    kept.chmod(0o777)
    with pytest.raises(ValueError, match=r"^engine\.compile_cache: everyone can write to .*parallel-sdxl"):
        use_compile_cache(str(tmp_path))
    kept.chmod(0o775)
    use_compile_cache(str(tmp_path))
    if os.getuid() == 0:
        os.chown(kept, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ValueError, match=r"^engine\.compile_cache: .*parallel-sdxl belongs to another user"):
        use_compile_cache(str(tmp_path))


def test_a_model_that_cannot_be_kept_is_no_reason_not_to_start(caplog: pytest.LogCaptureFixture) -> None:
    _keep(None, Path("/proc/nowhere/model.bin"))
    assert "could not be saved" in caplog.text


def test_without_a_folder_the_cache_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")
    monkeypatch.setenv("HOME", str(tmp_path))
    use_compile_cache(None)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / ".cache" / "parallel-sdxl")
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    use_compile_cache(None)
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert (folder.parent, folder.stat().st_mode & 0o777) == (tmp_path, 0o700)


@pytest.mark.parametrize("folder", ["{file}", "{file}/below", "~nobody-of-that-name/cache"])
def test_a_cache_that_is_not_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^engine\.compile_cache: .* cannot be created: "):
        use_compile_cache(folder.format(file=tmp_path / "file"))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "as it was"
