"""Folders that cannot be served are refused with one sentence that names the setting and the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.schedulers import scheduling_euler_discrete
from safetensors.torch import load_file

from serve_app.config import ModelConfig
from serve_app.models import PREVIEW_FOLDER
from serve_app.replica import checkpoint as checkpoint_module
from serve_app.replica.checkpoint import load_checkpoint
from tests.replica.refusals import CPU, UNET, Weights, change, early_refusal, edit, extra_weights, refusal, without


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
