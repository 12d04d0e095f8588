"""Checks of a replica's settings that need its files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from serve_app.config import AppArgs, EngineConfig, ModelConfig
from serve_app.errors import CheckpointError
from serve_app.replica.compilation import Compiled
from serve_app.replica.device import DeviceError
from serve_app.replica.kept_files import use_compile_cache
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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the cache, and another place for temporary folders."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(variable, "as it was")
    return tmp_path / "cache"


def used(folder: Path | str | None) -> Path:
    """Return the folder that the compiler keeps its results in."""
    use_compile_cache(None if folder is None else str(folder))
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_compiled_models_lie_in_a_folder_that_nobody_else_can_enter(cache: Path) -> None:
    """Whoever can write to the folder around it, as in a volume that all may write to."""
    cache.mkdir()
    cache.chmod(0o777)
    private = used(cache)
    assert (private.parent, mode(private)) == (cache, 0o700)
    assert used(cache) == private


def make_open(private: Path) -> None:
    private.chmod(0o750)


def give_away(private: Path) -> None:
    if os.getuid() == 0:
        os.chown(private, 12345, -1)


def replace_by_a_link(private: Path) -> None:
    private.rename(private.with_name("elsewhere"))
    private.symlink_to(private.with_name("elsewhere"))


def replace_by_a_file(private: Path) -> None:
    private.rmdir()
    private.touch()


@pytest.mark.parametrize("change", [make_open, give_away, replace_by_a_link, replace_by_a_file])
def test_a_folder_that_others_may_have_put_code_into_is_not_used(
    cache: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None]
) -> None:
    private = used(cache)
    change(private)
    if change is give_away and os.getuid() != 0:
        pytest.skip("only root gives a folder away")
    instead = used(cache)
    assert (instead.parent.name, mode(instead)) == ("temporary", 0o700)
    assert "engine.compile_cache is not used" in caplog.text
    assert str(private) in caplog.text


@pytest.mark.parametrize("folder", ["/dev/null", "/dev/null/below", "/proc/below", "~nobody-of-that-name/cache"])
def test_a_cache_that_cannot_be_created_costs_only_the_cache(
    cache: Path, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    assert used(folder).parent.name == "temporary"
    assert "engine.compile_cache is not used" in caplog.text


def test_a_model_that_cannot_be_kept_is_no_reason_not_to_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled(_: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return rows

    monkeypatch.setattr(Compiled, "_compile", lambda *_: compiled)
    forward = Compiled(compiled, nn.Identity())
    assert forward._compile_once((torch.ones(1),), ((1,),), Path("/proc/nowhere/model.bin")) is compiled
    assert "cannot be locked" in caplog.text
    assert "could not be saved" in caplog.text


def test_without_a_folder_the_cache_is_the_users_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(cache))
    assert used(None).parent == cache / ".cache" / "parallel-sdxl"


def test_on_gpus_there_is_a_cache_without_compiled_models_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own for our kernels is in the home folder, which may not be writable."""

    def none_here(*_: float) -> torch.device:
        raise DeviceError

    monkeypatch.setattr("serve_app.replica.loading.prepare_device", none_here)
    monkeypatch.setenv("HOME", "/dev/null")
    with pytest.raises(DeviceError):
        load(AppArgs(num_gpus=1))
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent.parent == cache.with_name("temporary")
