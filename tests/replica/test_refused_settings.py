"""A path that leads to nothing, or to something of another kind, is refused by its setting."""

import contextlib
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.models import PREVIEW_FOLDER
from serve_app.replica.loading import check_used
from tests.replica.refusals import (
    early_refusal,
    refusal,
)


@pytest.mark.parametrize(("setting", "wanted"), [("vae_path", "AutoencoderKL"), ("preview_path", "AutoencoderTiny")])
def test_a_part_of_another_kind_is_refused_by_its_setting(tiny_path: Path, setting: str, wanted: str) -> None:
    refused = early_refusal(tiny_path, **{setting: "unet"})
    assert refused == f"model.{setting}: {tiny_path}/unet is UNet2DConditionModel; {wanted} is supported"


@pytest.mark.parametrize("setting", ["vae_path", "preview_path"])
def test_a_damaged_part_is_refused_by_its_setting(tiny_path: Path, tmp_path: Path, setting: str) -> None:
    part = tmp_path / "part.safetensors"
    part.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert early_refusal(tiny_path, **{setting: str(part)}).startswith(f"model.{setting}: {part} is a git-lfs pointer")
    save_file({"lora": torch.ones(1)}, part)
    assert refusal(tiny_path, **{setting: str(part)}).startswith(f"model.{setting}: {part} lacks weights: ")


@pytest.mark.parametrize(("setting", "own"), [("vae_path", "vae"), ("preview_path", PREVIEW_FOLDER)])
def test_for_a_whole_checkpoint_the_right_folder_is_named(tiny_path: Path, setting: str, own: str) -> None:
    assert early_refusal(tiny_path, **{setting: str(tiny_path)}) == (
        f"model.{setting}: {tiny_path} is not a model's own folder, it has no config.json; name {tiny_path / own}"
    )


NOWHERE = ("~nobody-of-that-name/x", "n" * 300, f"{'n' * 300}/x", "file/below")


@pytest.mark.parametrize("name", NOWHERE)
@pytest.mark.parametrize("setting", ["path", "config_path", "vae_path", "preview_path"])
def test_an_impossible_name_is_refused_by_its_setting(
    file: Path, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    settings = {"path": str(file), "config_path": str(configs), setting: name}
    refused = refusal(**settings)
    assert refused.startswith(f"model.{setting}: ")
    assert name in refused
    with contextlib.suppress(CheckpointError):
        check_used(ModelConfig(**settings))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("path", ["/no/such/folder", "no/such/hub/id", "models/model.safetensors"])
def test_a_path_to_nothing_is_refused(path: str) -> None:
    assert refusal(path) == f"model.path: there is no file or folder {path}, and a hub id has the form owner/name"


@pytest.mark.usefixtures("offline")
def test_a_hub_id_that_cannot_be_fetched_is_refused(tiny_path: Path, file: Path) -> None:
    advice = "offline, name a local folder"
    for settings in ({"path": "nobody/nothing"}, {"path": tiny_path, "vae_path": "nobody/nothing"}):
        setting = [*settings][-1]
        refused = refusal(**settings)
        assert refused.startswith(
            f"model.{setting}: nobody/nothing is not on this machine and could not be fetched from the hub"
        )
        assert refused.endswith(advice)
    assert refusal(file, config_path="no/such/hub/id").startswith(
        "model.config_path: no/such/hub/id is not a folder here"
    )
