"""Equality with diffusers and PEFT, in float32: the weights that they merge, and the pictures of several adapters."""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from serve_app.replica.lora import Shapes, read_lora
from tests import lora_files
from tests.lora_files import CONVOLUTIONS, IN_TEXT_ENCODERS, RANK, Tensors, kohya, noise, peft, save
from tests.replica.lora.conftest import COMPONENTS

torch.set_num_threads(1)
SCALE = 0.7
NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


def with_text_encoders(models: Mapping[str, nn.Module], up: str, down: str) -> Tensors:
    """Return a LoRA of all components, text encoders' layers with these endings."""
    texts = {
        key: tensor
        for name in COMPONENTS[1:]
        for key, tensor in lora_files.dotted(models[name], up, down, IN_TEXT_ENCODERS, f"{name}.").items()
    }
    return peft(models["unet"]) | texts


FORMATS: dict[str, Any] = {
    "kohya": kohya,
    "kohya with diffusers' names": lambda models: kohya(models, original=False),
    "locon": lambda models: kohya({"unet": models["unet"]}, CONVOLUTIONS),
    "diffusers": lambda models: lora_files.dotted(models["unet"], ".lora.up.weight", ".lora.down.weight"),
    "diffusers, oldest": lambda models: lora_files.oldest(models["unet"]),
    "text encoders": lambda m: with_text_encoders(m, ".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    "peft": lambda models: with_text_encoders(models, ".lora_B.weight", ".lora_A.weight"),
    "peft, convolutions": lambda models: peft(models["unet"], CONVOLUTIONS),
    "dora": lambda models: peft(models["unet"], dora=True),
    "dora, convolutions": lambda models: peft(models["unet"], CONVOLUTIONS, dora=True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_changes_each_weight_as_peft_merges_it(
    pipe: StableDiffusionXLPipeline, models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path, name: str
) -> None:
    check(pipe, shapes, save(tmp_path / "lora.safetensors", FORMATS[name](models)))


def test_the_settings_of_peft_in_a_file_count(
    pipe: StableDiffusionXLPipeline, models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path
) -> None:
    tensors = peft(models["unet"])
    settings = {
        "r": RANK,
        "lora_alpha": 6,
        "alpha_pattern": {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 3},
        "use_rslora": True,
        "target_modules": sorted({key.removeprefix("unet.").partition(".lora_")[0] for key in tensors}),
    }
    metadata = json.dumps({f"unet.{name}": value for name, value in settings.items()})
    check(pipe, shapes, save(tmp_path / "lora.safetensors", tensors, {"lora_adapter_metadata": metadata}))


def check(pipe: StableDiffusionXLPipeline, shapes: Shapes, file: Path) -> None:
    """Assert that a file changes the same weights as in diffusers, and to the same."""
    ours = read_lora(file, shapes, "lora").components
    theirs = dict(merged_by_peft(pipe, file))
    assert {(component, layer) for component in ours for layer in ours[component]} == theirs.keys()
    for (component, layer), merged in theirs.items():
        pristine = getattr(pipe, component).get_submodule(layer).weight.detach()
        total = pristine.clone()
        ours[component][layer].add_to(total, pristine, SCALE)
        assert not torch.allclose(total, pristine, rtol=1e-2)
        torch.testing.assert_close(total, merged, **NEAR)


def merged_by_peft(pipe: StableDiffusionXLPipeline, file: Path) -> Iterator[tuple[tuple[str, str], Tensor]]:
    theirs = loaded(pipe, {"lora": file}, {"lora": SCALE})
    for component in COMPONENTS:
        for name, layer in getattr(theirs, component).named_modules():
            if hasattr(layer, "base_layer") and hasattr(layer, "merge"):
                layer.merge()
                yield (component, name), layer.base_layer.weight.detach()


def loaded(
    pipe: StableDiffusionXLPipeline, files: Mapping[str, Path], scales: Mapping[str, float]
) -> StableDiffusionXLPipeline:
    """Return a copy of the pipeline with adapters, loaded by diffusers."""
    parts = {name: copy.deepcopy(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    theirs = StableDiffusionXLPipeline(**{**pipe.components, **parts}, add_watermarker=False)
    for name, file in files.items():
        theirs.load_lora_weights(file, adapter_name=name)
    theirs.set_adapters(list(files), [scales[name] for name in files])
    return theirs


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_several_adapters_make_the_picture_that_diffusers_makes(
    pipe: StableDiffusionXLPipeline, models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path
) -> None:
    """A DoRA among them: each adds what it alone would change. PEFT agrees if the DoRA comes first."""
    files = {
        "dora": save(tmp_path / "dora.safetensors", peft(models["unet"], dora=True)),
        "plain": save(tmp_path / "plain.safetensors", kohya(models)),
    }
    scales = {"plain": 0.8, "dora": -0.6}
    ours = copy.deepcopy(pipe)
    for name, file in files.items():
        for component, layers in read_lora(file, shapes, name).components.items():
            for layer, delta in layers.items():
                total = getattr(ours, component).get_submodule(layer).weight.data
                delta.add_to(total, getattr(pipe, component).get_submodule(layer).weight.data, scales[name])
    theirs = loaded(pipe, files, scales)
    torch.testing.assert_close(latents(ours), latents(theirs), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(latents(ours), latents(pipe), rtol=1e-2)


@torch.inference_mode()
def latents(pipe: StableDiffusionXLPipeline) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    seeded = torch.Generator().manual_seed(7)
    pictures: Tensor = pipe(
        "a red apple", width=64, height=64, num_inference_steps=2, generator=seeded, output_type="latent"
    ).images
    return pictures


# diffusers cannot load LoHa, nor LyCORIS's LoKr; PEFT has their formulas.


@pytest.mark.parametrize("kind", ["linear", "convolution", "convolution, tucker"])
@pytest.mark.parametrize("method", ["loha", "lokr"])
def test_the_kinds_of_lycoris_are_those_of_peft(
    models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path, method: str, kind: str
) -> None:
    from peft import LoHaConfig, LoKrConfig
    from peft.tuners.loha import layer as loha
    from peft.tuners.lokr import layer as lokr

    name = "mid_block.resnets.0.conv1" if kind != "linear" else "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    base: Any = models["unet"].get_submodule(name)
    config = (LoHaConfig if method == "loha" else LoKrConfig)(use_effective_conv2d="tucker" in kind)
    made = {"loha": loha, "lokr": lokr}[method]
    layer = (made.Linear if kind == "linear" else made.Conv2d)(base, "a", config=config, r=2, alpha=5.0)
    tensors: Tensors = {"alpha": torch.tensor(5.0)}
    for part in layer.adapter_layer_names:
        held = getattr(layer, part)
        if "a" in held:
            held["a"].data = noise(*held["a"].shape, seed=len(part))
            tensors[part] = held["a"].detach()
    theirs = layer.get_delta_weight("a").detach()
    file = save(tmp_path / "lora.safetensors", lora_files.per_layer(models["unet"], f"^{name}$", lambda _: tensors))
    total = torch.zeros_like(theirs)
    read_lora(file, shapes, "lora").components["unet"][name].add_to(total, base.weight.detach(), SCALE)
    torch.testing.assert_close(total, theirs * SCALE, **NEAR)
    assert total.any()
