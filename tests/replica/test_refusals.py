"""Checkpoints that cannot be served are refused with one sentence that names the setting and the file."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers.schedulers import scheduling_euler_discrete
from safetensors.torch import load_file, save_file

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.models import PREVIEW_FOLDER
from serve_app.replica import checkpoint as checkpoint_module
from serve_app.replica.checkpoint import find_supported, load_checkpoint
from serve_app.replica.headers import read_header
from serve_app.replica.loading import check_used

CPU = torch.device("cpu")
UNET = Path("unet/diffusion_pytorch_model.safetensors")
Weights = dict[str, torch.Tensor]


def refusal(path: Path | str, **settings: object) -> str:
    """Return the sentence with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(ModelConfig(path=str(path), **settings), CPU)
    message = str(refused.value)
    assert message.startswith("model.")
    assert "\n" not in message
    return message


def early_refusal(path: Path, **settings: object) -> str:
    """Return the sentence with which a checkpoint is refused before any weights are read."""
    with pytest.raises(CheckpointError) as refused:
        look_at(ModelConfig(path=str(path), **settings))
    assert refusal(path, **settings) == str(refused.value)
    return str(refused.value)


def look_at(config: ModelConfig) -> None:
    find_supported(config)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change(file: Path, act: Callable[[Weights], object]) -> None:
    """Change the weights in a file."""
    weights = load_file(file)
    act(weights)
    save_file(weights, file)


def extra_weights(extra: Weights) -> Callable[[Weights], object]:
    return lambda weights: weights.update(extra)


def without(prefix: str) -> Callable[[Weights], None]:
    def remove(weights: Weights) -> None:
        for key in [key for key in weights if key.startswith(prefix)]:
            del weights[key]

    return remove


def shards(folder: Path) -> None:
    """Write an index that lists a second file of weights, which is missing."""
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "one.safetensors", "conv_out.weight": "two.safetensors"}}
    (folder / UNET).rename(folder / "unet" / "one.safetensors")
    (folder / f"{UNET}.index.json").write_text(json.dumps(index))


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "refiner": (
        lambda f: edit(f / "model_index.json", text_encoder=[None, None]),
        "model.path: {f} has no first text encoder, like SDXL's refiner",
    ),
    "another kind": (
        lambda f: edit(f / "model_index.json", _class_name="StableDiffusion3Pipeline"),
        "model.path: {f} is a StableDiffusion3Pipeline; only whole SDXL text-to-image checkpoints are supported",
    ),
    "not SDXL's UNet": (
        lambda f: edit(f / "unet/config.json", addition_embed_type=None),
        "model.path: {f}/unet is not an SDXL UNet",
    ),
    "edits pictures": (
        lambda f: edit(f / "unet/config.json", in_channels=8),
        "model.path: {f}/unet is not a text-to-image model, its UNet takes 8 channels and returns 4; only whole",
    ),
    "quantized": (
        lambda f: edit(f / "unet/config.json", quantization_config={"quant_method": "x"}),
        "model.path: {f}/unet is quantized",
    ),
    "another text encoder": (
        lambda f: edit(f / "text_encoder_2/config.json", hidden_size=64),
        "model.path: {f}/unet does not fit its text encoders: cross_attention_dim is 64, theirs make 96",
    ),
    "another VAE": (
        lambda f: edit(f / "vae/config.json", latent_channels=16),
        "model.path: {f}/vae decodes latents of 16 channels, the UNet's have 4",
    ),
    "another tiny VAE": (
        lambda f: edit(f / PREVIEW_FOLDER / "config.json", latent_channels=16),
        "model.path: {f}/preview_vae decodes latents of 16 channels",
    ),
    "no VAE": (
        lambda f: edit(f / "model_index.json", vae=[None, None]),
        "model.path: {f} has no VAE; name one in model.vae_path",
    ),
    "no such text encoder": (
        lambda f: edit(f / "model_index.json", text_encoder_2=["transformers", "T5EncoderModel"]),
        "model.path: {f}/text_encoder_2 is T5EncoderModel; CLIPTextModelWithProjection is supported",
    ),
    "no index": (
        lambda f: (f / "model_index.json").unlink(),
        "model.path: {f} is not a diffusers folder, it has no model_index.json",
    ),
    "broken index": (
        lambda f: (f / "model_index.json").write_text("<html>"),
        "model.path: {f}/model_index.json is missing or not JSON",
    ),
    "no config": (
        lambda f: (f / "unet/config.json").unlink(),
        "model.path: {f}/unet/config.json is missing or not JSON",
    ),
    "pickled": (
        lambda f: (f / UNET).rename((f / UNET).with_suffix(".bin")),
        "model.path: {f}/unet has only pickled weights",
    ),
    "a variant alone": (
        lambda f: (f / UNET).rename((f / UNET).with_suffix(".fp16.safetensors")),
        "model.path: {f}/unet has only weights of the variant fp16; set model.variant: fp16",
    ),
    "no weights": (lambda f: (f / UNET).unlink(), "model.path: {f}/unet has no weights"),
    "an index of another form": (
        lambda f: (f / f"{UNET}.index.json").write_text('{"weight_map": ["conv_in.weight"]}'),
        "model.path: {f} has files that cannot be read (AttributeError: ",
    ),
    "sizes that are no numbers": (
        lambda f: edit(f / "text_encoder/config.json", hidden_size="32"),
        "model.path: {f} has files that cannot be read (TypeError: ",
    ),
    "a shard missing": (shards, "model.path: {f}/unet lacks two.safetensors"),
    "cut off": (
        lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-1]),
        f"model.path: {{f}}/{UNET} is not a complete .safetensors file",
    ),
    "git-lfs": (
        lambda f: (f / UNET).write_text("version https://git-lfs.github.com/spec/v1\n"),
        f"model.path: {{f}}/{UNET} is a git-lfs pointer",
    ),
    "a web page": (lambda f: (f / UNET).write_text("<!DOCTYPE html>"), f"model.path: {{f}}/{UNET} is a web page"),
    "8-bit integers": (
        lambda f: change(f / UNET, lambda w: w.update({"conv_in.weight": w["conv_in.weight"].to(torch.int8)})),
        "model.path: {f}/unet holds quantized weights, which are not supported: conv_in.weight",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_cannot_be_served_is_refused_before_its_weights_are_read(copy: Path, case: str) -> None:
    spoil, message = FOLDERS[case]
    spoil(copy)
    assert message.format(f=copy) in early_refusal(copy)


def test_a_folder_of_single_files_says_which_to_name(file: Path) -> None:
    assert early_refusal(file.parent).endswith(f"to serve a single file, name it, such as {file}")


PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")


@pytest.mark.parametrize("part", [*PARTS, PREVIEW_FOLDER])
@pytest.mark.parametrize("fault", ["lacks weights", "its config does not have", "shapes differ"])
def test_a_part_that_is_not_what_its_config_says_is_refused(copy: Path, part: str, fault: str) -> None:
    weights_file = next((copy / part).glob("*.safetensors"))
    key = next(
        key for key in sorted(load_file(weights_file)) if key.endswith("weight") and not key.startswith("encoder.conv")
    )
    if part == PREVIEW_FOLDER:
        key = "decoder.layers.0.weight"

    def spoil(weights: Weights) -> None:
        match fault:
            case "lacks weights":
                del weights[key]
            case "its config does not have":
                key_scale = f"{key}_scale"
                weights[key_scale] = torch.ones(())
            case _:
                weights[key] = torch.cat([weights[key], weights[key]])

    change(weights_file, spoil)
    assert refusal(copy).startswith(f"model.path: {copy}/{part} ")
    assert fault in refusal(copy)
    assert key.removeprefix("text_model.") in refusal(copy)


def test_weights_that_pictures_do_not_depend_on_are_optional(copy: Path) -> None:
    for encoder in ("text_encoder", "text_encoder_2"):
        extra = {"logit_scale": torch.ones(()), "text_model.embeddings.position_ids": torch.arange(77)[None]}
        change(copy / encoder / "model.safetensors", extra_weights(extra))
    change(copy / "text_encoder/model.safetensors", lambda w: w.update({"text_projection.weight": torch.ones(32, 32)}))
    tiny = copy / PREVIEW_FOLDER / "diffusion_pytorch_model.safetensors"
    change(tiny, without("encoder."))
    assert load_checkpoint(ModelConfig(path=str(copy)), CPU).preview_vae is not None


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("tokenizer.json", " tokens, its text encoder 514; tokenizer.json or vocab.json is missing"),
        (
            "tokenizer_config.json",
            " does not cut prompts to the 77 tokens of its text encoder; tokenizer_config.json is missing",
        ),
    ],
)
def test_a_tokenizer_that_is_not_its_encoders_is_refused(copy: Path, name: str, lost: str, message: str) -> None:
    (copy / name / lost).unlink()
    refused = refusal(copy)
    assert refused.startswith(f"model.path: {copy / name} ")
    assert message in refused


def test_a_tokenizer_with_another_end_token_is_refused(copy: Path) -> None:
    edit(copy / "text_encoder_2/config.json", eos_token_id=7)
    assert refusal(copy) == f"model.path: {copy / 'tokenizer_2'} ends prompts with token 513, its text encoder with 7"


def test_a_missing_tokenizer_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer_2")
    assert refusal(copy) == f"model.path: {copy / 'tokenizer_2'} is not a folder; the tokenizer's files belong there"


SCHEDULERS: dict[str, tuple[dict[str, object], str]] = {
    "needs an extra": ({"use_beta_sigmas": True}, "cannot be loaded as EulerDiscreteScheduler (ImportError: "),
    "flags that exclude each other": (
        {"use_karras_sigmas": True, "use_exponential_sigmas": True},
        "cannot be loaded as EulerDiscreteScheduler (ValueError: ",
    ),
    "an unknown option": ({"beta_schedule": "squared"}, "cannot be loaded as EulerDiscreteScheduler (NotImplemented"),
    "a number that is none": ({"beta_start": "small"}, "cannot be loaded as EulerDiscreteScheduler (TypeError: "),
    "no steps": ({"use_dynamic_shifting": True}, "has a config that unipc cannot use (ValueError: "),
}


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if weights are read."""

    def refuse(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(checkpoint_module, "load_part", refuse)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("case", SCHEDULERS)
def test_a_scheduler_that_cannot_be_made_is_refused_before_any_weights_are_read(
    copy: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling_euler_discrete, "is_scipy_available", lambda: False)
    changes, message = SCHEDULERS[case]
    edit(copy / "scheduler/scheduler_config.json", **changes)
    assert refusal(copy).startswith(f"model.path: {copy}/scheduler {message}")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("index", "found"), [(["diffusers", "Foo"], "Foo"), (["diffusers", "UNet2DModel"], "UNet2DModel"), (7, "of no")]
)
def test_a_scheduler_of_an_unknown_class_is_refused(copy: Path, index: object, found: str) -> None:
    edit(copy / "model_index.json", scheduler=index)
    refused = refusal(copy)
    assert refused.startswith(f"model.path: {copy}/scheduler is {found}")
    assert refused.endswith("; name a scheduler of diffusers in model_index.json")


def takes(channels: int) -> Callable[[Weights], object]:
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, channels, 3, 3)}
    return lambda weights: weights.update(first)


def refiner(weights: Weights) -> None:
    without("conditioner.")(weights)
    weights["conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"] = torch.zeros(1)


def lora(weights: Weights) -> None:
    weights.clear()
    weights["lora_unet_input_blocks_4_1_proj_in.lora_down.weight"] = torch.zeros(1)


FILES: dict[str, tuple[Callable[[Weights], object], str]] = {
    "edits pictures": (takes(8), "is not a text-to-image model, its UNet takes 8 channels and returns 4; only whole"),
    "depth": (takes(5), "is not a text-to-image model, its UNet takes 5 channels and returns 4; only whole"),
    "refiner": (refiner, "is an SDXL refiner; only whole SDXL"),
    "a LoRA": (lora, "is a LoRA, which belongs in adapters.path; only whole SDXL"),
    "no VAE": (without("first_stage_model."), "has no VAE; name one in model.vae_path"),
    "no text encoder": (without("conditioner.embedders.1."), "it has no second text encoder"),
    "no UNet": (without("model.diffusion_model."), "it has no UNet"),
    "two VAEs": (extra_weights({"vae.x": torch.zeros(1)}), "has two VAEs (vae., first_stage_model.); name one in"),
    "a mean alone": (extra_weights({"edm_mean": torch.zeros(4)}), "is an EDM model, but edm_std in it has not 4 num"),
    "no level": (
        extra_weights({"edm_vpred.sigma_max": torch.zeros(0)}),
        "is an EDM model, but edm_vpred.sigma_max in it has not 1 numbers",
    ),
    "nested": (
        lambda weights: [weights.update({f"state_dict.{key}": weights.pop(key)}) for key in [*weights]],
        "is of no known kind",
    ),
}


@pytest.fixture
def spoiled(file: Path, tmp_path: Path) -> Callable[[Callable[[Weights], object]], Path]:
    """Return a copy of the single file, changed."""

    def spoil(act: Callable[[Weights], object]) -> Path:
        weights = load_file(file)
        act(weights)
        save_file(weights, tmp_path / "spoiled.safetensors")
        return tmp_path / "spoiled.safetensors"

    return spoil


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_not_a_whole_sdxl_is_refused_before_its_weights_are_read(
    spoiled: Any, configs: Path, case: str
) -> None:
    act, message = FILES[case]
    path = spoiled(act)
    refused = early_refusal(path, config_path=str(configs))
    assert refused.startswith(f"model.path: {path} ")
    assert message in refused


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_pickle_is_refused_by_any_name(file: Path, configs: Path, tmp_path: Path, name: str) -> None:
    torch.save({"state_dict": load_file(file)}, tmp_path / name)
    refused = early_refusal(tmp_path / name, config_path=str(configs))
    assert (
        refused
        == f"model.path: {tmp_path / name} holds pickled weights, which are never loaded; convert it to .safetensors"
    )


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00", "holds pickled weights"),
        (b"\x80\x05\x95", "holds pickled weights"),
        (b"PK\x03\x04", "holds pickled weights"),
        (b"GGUF\x03\0\0\0{\0\0\0", "is a GGUF file"),
        (b"\n <!DOCTYPE html>", "is a web page"),
        # The first byte is the lowest of the header's length, so it can be anything.
        *[
            (bytes([first, 2, 4, 0, 0, 0, 0, 0]) + b'{"a', "is not a complete .safetensors file")
            for first in b"\x80<P\nG"
        ],
        (b"PK\x03\x04\0\0\0\0{", "is not a complete .safetensors file"),
        (b"\n<\4\0\0\0\0\0{", "is not a complete .safetensors file"),
        (b"\x80\x81", "is not a complete .safetensors file"),
        (b"", "is empty; download it again"),
    ],
)
def test_the_kind_of_a_file_is_named(tmp_path: Path, start: bytes, says: str) -> None:
    (tmp_path / "file").write_bytes(start)
    with pytest.raises(CheckpointError, match=rf"^model\.vae_path: {tmp_path}/file {says}"):
        read_header("vae_path", tmp_path / "file")


LAYERS = {
    "text_encoder": "conditioner.embedders.0.transformer.text_model.encoder.layers.1.mlp.fc1.weight",
    "text_encoder_2": "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_fc.weight",
    "unet": "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
    "the UNet's sizes": "model.diffusion_model.label_emb.0.0.weight",
    "vae": "first_stage_model.decoder.up.1.block.0.conv1.weight",
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("fault", ["lacks", "its config does not have", "shapes differ", "quantized"])
def test_a_file_that_is_not_what_its_configs_say_is_refused(
    spoiled: Any, configs: Path, layer: str, fault: str
) -> None:
    def spoil(weights: Weights) -> None:
        match fault:
            case "lacks":
                del weights[layer]
            case "its config does not have":
                weights[layer.replace(".weight", ".oft_diag")] = torch.ones(1)
            case "quantized":
                weights[layer] = weights[layer].to(torch.int8)
            case _:
                weights[layer] = torch.cat([weights[layer], weights[layer]])

    path = spoiled(spoil)
    refused = refusal(path, config_path=str(configs))
    assert refused.startswith(f"model.path: {path} ")
    assert fault in refused


CONFIGS = "; its config is SDXL's, or that in model.config_path"


@pytest.mark.parametrize(
    ("encoder", "prefix", "norm"),
    [
        ("first", "conditioner.embedders.0.transformer.", "text_model.final_layer_norm.bias"),
        ("second", "conditioner.embedders.1.model.", "ln_final.bias"),
    ],
)
def test_the_incomplete_model_of_a_file_is_named(
    spoiled: Any, configs: Path, encoder: str, prefix: str, norm: str
) -> None:
    """The config is mentioned only for unknown weights: a config cannot cause missing weights."""
    path = spoiled(lambda weights: weights.pop(prefix + norm))
    start = f"model.path: {path} ({encoder} text encoder) "
    lacking = refusal(path, config_path=str(configs))
    assert lacking.startswith(f"{start}lacks weights: ")
    assert lacking.endswith("final_layer_norm.bias")
    path = spoiled(extra_weights({f"{prefix}foo.weight": torch.ones(1)}))
    unknown = refusal(path, config_path=str(configs))
    assert unknown.startswith(f"{start}holds weights that its config does not have: ")
    assert unknown.endswith(f"foo.weight{CONFIGS}")


@pytest.mark.parametrize(
    ("config", "changes"),
    [("vae", {"act_fn": "?"}), ("unet", {"act_fn": "?"}), ("text_encoder_2", {"hidden_act": "?"})],
)
def test_a_config_that_no_model_can_be_made_from_is_refused(
    file: Path, configs: Path, tmp_path: Path, config: str, changes: dict[str, object]
) -> None:
    others = Path(shutil.copytree(configs, tmp_path / "configs"))
    edit(others / config / "config.json", **changes)
    assert " cannot be loaded as " in refusal(file, config_path=str(others))


def test_extra_tensors_of_other_tools_are_harmless(spoiled: Any, configs: Path) -> None:
    def act(weights: Weights) -> None:
        weights["first_stage_model.loss.logvar"] = torch.ones(())
        weights["conditioner.embedders.0.transformer.text_projection.weight"] = torch.ones(32, 32)
        weights["model_ema.decay"] = torch.ones(())
        weights["alphas_cumprod"] = torch.ones(1000)

    assert load_checkpoint(ModelConfig(path=str(spoiled(act)), config_path=str(configs)), CPU)


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
