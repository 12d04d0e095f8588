"""The largest inputs of layers: measured on a few pictures, once for all replicas and starts of a machine."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from serve_app.config import ModelConfig
from serve_app.recipe import Recipe
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import Decoder
from serve_app.replica.denoise import Denoiser
from serve_app.replica.kept_files import keep, kept_file
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import eager

logger = logging.getLogger("ray.serve")

Place = tuple[str, str]
"""`unet` or `decoder`, and a layer's name in it."""

_STEPS = 8
# The layers' inputs depend little on the subject; these prompts differ in length, light and detail.
_PROMPTS = (
    "a photo of a cat",
    "a crowded market street at night, neon signs, rain, highly detailed",
    "a white cup on a white table",
    "portrait in oil",
)
_NEGATIVE = "blurry, low quality"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def peaks_of(
    checkpoint: Checkpoint, model: ModelConfig, layers: Mapping[Place, nn.Module]
) -> Mapping[Place, torch.Tensor]:
    """Return the largest absolute input of each layer, from the cache's folder if it was measured before.

    Every replica measures the same: the kept ones only save the time.
    """
    path = _file(checkpoint, model, layers)
    peaks = _read(path, checkpoint.device)
    if peaks is None:
        peaks = _measure(checkpoint, model, layers)
        by_name = {".".join(place): peak for place, peak in peaks.items()}
        keep(path, lambda name: save_file(by_name, name))
    return peaks


def _file(checkpoint: Checkpoint, model: ModelConfig, layers: Mapping[Place, nn.Module]) -> Path:
    pipe = checkpoint.pipe
    models = checkpoint.unet, checkpoint.vae, pipe.text_encoder, pipe.text_encoder_2
    settings = model.width, model.height, model.guidance_scale, checkpoint.scheduler_config
    depends = list(layers), *settings, *map(_settings, models), *map(_bits, models)
    return kept_file("peaks", "safetensors", checkpoint.device, depends)


def _settings(model: Any) -> dict[str, Any]:
    config = model.config.to_dict() if isinstance(model, PreTrainedModel) else model.config
    return {key: value for key, value in config.items() if not key.startswith("_")}  # the others are paths


@torch.inference_mode()
def _bits(model: nn.Module) -> list[int]:
    """Return a sum of the bits of each of a model's weights: other weights have others. Takes no time on a GPU."""
    sums = [weight.view(_BITS[weight.element_size()]).sum(dtype=torch.int64) for weight in model.parameters()]
    return [int(one) for one in torch.stack(sums).tolist()]


def _read(path: Path, device: torch.device) -> Mapping[Place, torch.Tensor] | None:
    try:
        kept = load_file(path, str(device))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError):
        logger.warning("the inputs measured in %s cannot be read and are measured again", path, exc_info=True)
        return None
    return {(of, layer): peak for name, peak in kept.items() for of, _, layer in [name.partition(".")]}


@torch.inference_mode()
def _measure(
    checkpoint: Checkpoint, model: ModelConfig, layers: Mapping[Place, nn.Module]
) -> Mapping[Place, torch.Tensor]:
    peaks: dict[Place, torch.Tensor] = {}

    def watch(place: Place) -> Any:
        def look(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            peak = inputs[0].abs().amax()
            peaks[place] = torch.maximum(peaks[place], peak) if place in peaks else peak

        return look

    hooks = [layer.register_forward_pre_hook(watch(place)) for place, layer in layers.items()]
    reader, encoder = (
        PromptReader(checkpoint.pipe),
        PromptEncoder(checkpoint.pipe, checkpoint.device, len(_PROMPTS) + 2),
    )
    denoiser = Denoiser(checkpoint, eager(checkpoint.unet))  # a CUDA graph does not call hooks
    decoder = Decoder(checkpoint, "none")
    for seed, prompt in enumerate(_PROMPTS):
        recipe = Recipe(
            prompt=prompt,
            width=model.width,
            height=model.height,
            num_inference_steps=_STEPS,
            guidance_scale=model.guidance_scale,
            negative_prompt=_NEGATIVE if seed % 2 else "",  # without one, half of the rows have no cross-attention
        )
        trajectory = Trajectory.of(recipe, seed, checkpoint, encoder.conditions(reader.read(recipe)))
        while not trajectory.done:
            trajectory.advance(denoiser.predict([trajectory])[0])
        decoder.decode(trajectory.latents)
    for hook in hooks:
        hook.remove()
    return peaks
