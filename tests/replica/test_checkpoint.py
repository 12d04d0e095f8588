import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMParallelScheduler,
    EulerAncestralDiscreteScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.models import PREVIEW_FOLDER
from serve_app.models.tiny import build
from serve_app.replica import checkpoint as checkpoint_module
from serve_app.replica.checkpoint import load_checkpoint
from serve_app.replica.hashing import checkpoint_hash
from serve_app.replica.model_kind import PartName
from serve_app.replica.placing import Placer
from serve_app.replica.sources import find_sources
from serve_app.replica.weights import load_part
from tests.conftest import MakeEngine, make_slot

CPU = torch.device("cpu")


def hash_of(path: Path, **settings: object) -> str:
    return checkpoint_hash(find_sources(ModelConfig(path=str(path), **settings)), {})


def test_the_name_is_the_last_part_of_the_path_or_as_configured(tiny_path: Path, copy: Path) -> None:
    dotted = copy.rename(copy.with_name("my-sdxl-1.0"))
    assert load_checkpoint(ModelConfig(path=str(dotted)), CPU).info.name == "my-sdxl-1.0"
    assert load_checkpoint(ModelConfig(path=str(tiny_path)), CPU).info.name == tiny_path.name
    assert load_checkpoint(ModelConfig(path=str(tiny_path), name="mine"), CPU).info.name == "mine"


def test_a_preview_vae_may_be_in_the_checkpoint_or_elsewhere_or_absent(tiny_path: Path, copy: Path) -> None:
    elsewhere = copy / PREVIEW_FOLDER
    for preview_path in (None, PREVIEW_FOLDER, str(elsewhere)):
        assert load_checkpoint(ModelConfig(path=str(tiny_path), preview_path=preview_path), CPU).preview_vae is not None
    shutil.rmtree(elsewhere)
    assert load_checkpoint(ModelConfig(path=str(copy)), CPU).preview_vae is None


def test_the_default_scheduler_is_the_checkpoints_or_as_configured(copy: Path) -> None:
    EulerAncestralDiscreteScheduler(timestep_spacing="trailing").save_pretrained(copy / "scheduler")
    index = json.loads((copy / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EulerAncestralDiscreteScheduler"]
    (copy / "model_index.json").write_text(json.dumps(index))
    assert load_checkpoint(ModelConfig(path=str(copy)), CPU).scheduler == "euler_a"
    assert load_checkpoint(ModelConfig(path=str(copy), scheduler="unipc"), CPU).scheduler == "unipc"


def test_an_unknown_scheduler_is_an_error_that_names_the_setting(copy: Path) -> None:
    DDIMParallelScheduler().save_pretrained(copy / "scheduler")
    index = json.loads((copy / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDIMParallelScheduler"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model\.scheduler: .*DDIMParallelScheduler"):
        load_checkpoint(ModelConfig(path=str(copy)), CPU)


@pytest.mark.parametrize(("dtype", "vae"), [("bfloat16", torch.bfloat16), ("float16", torch.bfloat16)])
def test_the_vae_never_runs_in_float16_unless_it_is_safe(tiny_path: Path, dtype: str, vae: torch.dtype) -> None:
    checkpoint = load_checkpoint(ModelConfig(path=str(tiny_path), dtype=dtype), CPU)
    assert checkpoint.unet.dtype == getattr(torch, dtype)
    assert checkpoint.vae.dtype == vae


@pytest.fixture
def safe_vae(copy: Path) -> Path:
    """A VAE whose config says that it does not overflow in float16."""
    vae = AutoencoderKL.from_pretrained(copy / "vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias += 0.5
    vae.register_to_config(force_upcast=False)
    vae.save_pretrained(copy / "safe_vae")
    return copy / "safe_vae"


def test_another_vae_takes_the_place_of_the_checkpoints_own(
    tiny_path: Path, copy: Path, safe_vae: Path, make_engine: MakeEngine
) -> None:
    own = load_checkpoint(ModelConfig(path=str(tiny_path)), CPU)
    others = [
        load_checkpoint(ModelConfig(path=str(path), vae_path=name), CPU)
        for path, name in ((copy, "safe_vae"), (tiny_path, str(safe_vae)))
    ]
    assert {other.info.hash for other in others} == {hash_of(tiny_path, vae_path=str(safe_vae))}
    assert own.info.hash not in {other.info.hash for other in others}, "it generates other pictures"
    dark, bright = (
        make_engine(checkpoint=c).generate(make_slot(keep_pixels=True))[0].pixels.mean() for c in (own, others[0])
    )
    assert bright > dark + 20


def test_a_vae_that_is_safe_in_float16_runs_in_it(copy: Path, safe_vae: Path) -> None:
    assert (
        load_checkpoint(ModelConfig(path=str(copy), dtype="float16", vae_path="safe_vae"), CPU).vae.dtype
        == torch.float16
    )


@pytest.mark.parametrize("setting", ["vae_path", "preview_path"])
@pytest.mark.parametrize("name", ["/no/such/folder", "no/such/hub/id"])
def test_a_missing_part_is_an_error_that_names_the_setting(tiny_path: Path, setting: str, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"model.{setting}: {name} is neither"):
        load_checkpoint(ModelConfig(path=str(tiny_path), **{setting: name}), CPU)


def test_a_variants_weights_are_its_own(copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.variant: .* has no weights of the variant fp16"):
        load_checkpoint(ModelConfig(path=str(copy), variant="fp16"), CPU)
    for component in ("text_encoder", "text_encoder_2", "unet", "vae"):
        for file in (copy / component).glob("*.safetensors"):
            file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    checkpoint = load_checkpoint(ModelConfig(path=str(copy), variant="fp16"), CPU)
    assert checkpoint.info.hash == hash_of(copy, variant="fp16")


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_files_that_are_hashed_are_those_that_are_loaded(copy: Path, part: PartName, variant: str | None) -> None:
    """Where shards and a single file exist, diffusers loads the shards, transformers the single file.

    Parts without weights of the variant use those without a variant.
    """
    folder = copy / part
    model = (UNet2DConditionModel if part == "unet" else CLIPTextModel).from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(folder / "shards", max_shard_size="40KB", variant=variant)
    for file in (folder / "shards").glob("*model*"):
        file.rename(folder / file.name)
    config = ModelConfig(path=str(copy), variant=variant)
    found = find_sources(config).parts[part]
    assert found.variant == variant
    named = {key: tensor for file in found.files for key, tensor in load_file(file).items()}
    loaded = load_part(part, found, Placer(CPU, torch.float32)).state_dict()
    assert named.keys() == loaded.keys()
    assert all(torch.equal(named[key], tensor) for key, tensor in loaded.items())


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_are_converted_once_from_the_types_of_the_file(copy: Path, part: PartName, mixed: bool) -> None:
    (file,) = (copy / part).glob("*.safetensors")
    weights = {key: tensor.half() for key, tensor in load_file(file).items()}
    if mixed:
        first = next(iter(weights))
        weights[first] = weights[first].float() + 1e-4  # would be another number if it became float16 on its way
    save_file(weights, file, {"format": "pt"})
    found = find_sources(ModelConfig(path=str(copy))).parts[part]
    loaded = load_part(part, found, Placer(CPU, torch.bfloat16)).state_dict()
    assert all(torch.equal(loaded[key], tensor.bfloat16()) for key, tensor in weights.items())
    assert {tensor.dtype for tensor in loaded.values() if tensor.is_floating_point()} == {torch.bfloat16}


def test_the_tiny_model_is_the_same_every_time_it_is_built(tiny_path: Path, tmp_path: Path) -> None:
    assert hash_of(build(tmp_path)) == hash_of(tiny_path)
    assert [p.name for p in tmp_path.iterdir()] == [tiny_path.name], "nothing half-made is left behind"


def test_loading_does_not_wait_for_the_hash_of_the_weights(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()

    def slow(*_: object) -> str:
        assert may_end.wait(timeout=60)
        return "0123456789"

    monkeypatch.setattr(checkpoint_module, "checkpoint_hash", slow)
    loaded = load_checkpoint(ModelConfig(path=str(tiny_path)), CPU)
    assert not loaded.named.done()
    may_end.set()
    assert loaded.info.hash == "0123456789"
