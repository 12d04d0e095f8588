"""A single `.safetensors` file in the original layout is the same model as its diffusers folder."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from serve_app.config import ModelConfig
from serve_app.replica import sources
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from tests.conftest import MakeEngine, make_slot
from tests.replica.conftest import MODELS
from tests.single_file import save_single_file

CPU = torch.device("cpu")


def assert_same_weights(ours: Checkpoint, theirs: Checkpoint) -> None:
    for name in MODELS:
        expected = getattr(theirs.pipe, name).state_dict()
        loaded = getattr(ours.pipe, name).state_dict()
        assert loaded.keys() == expected.keys()
        wrong = [
            key
            for key, tensor in expected.items()
            if loaded[key].dtype != tensor.dtype or not torch.equal(loaded[key], tensor)
        ]
        assert not wrong, f"{name}: {wrong}"


def test_every_weight_is_the_folders(file: Path, configs: Path, folder: Path, lookups: list[object]) -> None:
    loaded = load_checkpoint(ModelConfig(path=str(file), config_path=str(configs)), CPU)
    assert_same_weights(loaded, load_checkpoint(ModelConfig(path=str(folder)), CPU))
    assert lookups == [], "a local file and a local folder of configs need no network"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_half_precision_file_is_the_half_precision_folder(
    dtype: Literal["float16", "bfloat16"], pipe: StableDiffusionXLPipeline, configs: Path, folder: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half.safetensors"
    save_single_file(pipe, half, getattr(torch, dtype))
    loaded = load_checkpoint(ModelConfig(path=str(half), config_path=str(configs), dtype=dtype), CPU)
    assert_same_weights(loaded, load_checkpoint(ModelConfig(path=str(folder), dtype=dtype), CPU))


def test_it_has_the_files_own_name_and_hash(file: Path, configs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "sdxl_path", lambda: configs)
    info = load_checkpoint(ModelConfig(path=str(file)), CPU).info
    assert info.name == "fine-tune_v1.0"
    assert info.hash == hashlib.sha256(file.read_bytes()).hexdigest()[:10]


def test_another_vae_makes_it_another_hash(
    file: Path, configs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "sdxl_path", lambda: configs)
    info = load_checkpoint(ModelConfig(path=str(file), vae_path=str(folder / "vae")), CPU).info
    assert info.hash != hashlib.sha256(file.read_bytes()).hexdigest()[:10]


def test_the_picture_is_the_folders(file: Path, configs: Path, folder: Path, make_engine: MakeEngine) -> None:
    one, other = (
        make_engine(checkpoint=load_checkpoint(config, CPU)).generate(make_slot(keep_pixels=True))[0].pixels
        for config in (ModelConfig(path=str(file), config_path=str(configs)), ModelConfig(path=str(folder)))
    )
    assert np.array_equal(one, other)


def with_markers(file: Path, folder: Path, *markers: str) -> ModelConfig:
    save_file({**load_file(file), **{marker: torch.zeros(0) for marker in markers}}, folder / file.name)
    return ModelConfig(path=str(folder / file.name))


def test_a_file_is_sampled_as_its_markers_say(
    file: Path,
    folder: Path,
    configs: Path,
    tmp_path: Path,
    make_engine: MakeEngine,
) -> None:
    marked = with_markers(file, tmp_path, "v_pred", "ztsnr").model_copy(update={"config_path": str(configs)})
    said = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    told = ModelConfig(path=str(folder), **said)
    plain, one, other = (
        make_engine(checkpoint=load_checkpoint(config, CPU)).generate(make_slot(keep_pixels=True))[0].pixels
        for config in (ModelConfig(path=str(folder)), marked, told)
    )
    assert np.array_equal(one, other)
    assert not np.array_equal(one, plain)
    assert load_checkpoint(marked, CPU).info.model_dump(include={*said}) == said
    corrected = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    assert load_checkpoint(marked.model_copy(update=corrected), CPU).info.model_dump(include={*said}) == corrected


def test_an_inpainting_file_takes_a_mask_whatever_its_configs_say(file: Path, configs: Path, tmp_path: Path) -> None:
    weights = load_file(file)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    weights[first] = torch.cat([weights[first], torch.ones(32, 5, 3, 3)], dim=1)
    save_file(weights, tmp_path / "inpainting.safetensors")
    config = ModelConfig(path=str(tmp_path / "inpainting.safetensors"), config_path=str(configs))
    loaded = load_checkpoint(config, CPU).unet
    assert loaded.config.in_channels == 9
    assert torch.equal(loaded.conv_in.weight, weights[first])
