"""Runs the UNet's large linear layers in 8-bit floats: half the bytes, and twice the rate on GPUs that support them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.recipe import Recipe
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.denoise import Denoiser
from serve_app.replica.fp8 import Fp8Linear
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import eager

_FEWEST_FEATURES = 640  # in smaller layers, converting the input costs more than it saves
_STEPS = 8
# The layers' inputs depend little on the subject; these prompts differ in length, light and detail.
_PROMPTS = (
    "a photo of a cat",
    "a crowded market street at night, neon signs, rain, highly detailed",
    "a white cup on a white table",
    "portrait in oil",
)
_NEGATIVE = "blurry, low quality"


def to_fp8(
    checkpoint: Checkpoint, model: ModelConfig, fewest_features: int = _FEWEST_FEATURES, keep: bool = False
) -> int:
    """Replace the linear layers of the UNet's transformer blocks; return how many.

    `keep` keeps their weights too, for adapters.

    The scales of their inputs are measured once, on a few pictures, and then fixed: a scale per call would need another
    pass over the data, which costs what the matrix product gains. Every replica measures the same scales.
    Raises CheckpointError if the GPU does not support 8-bit floats.
    """
    if checkpoint.device.type == "cuda" and torch.cuda.get_device_capability(checkpoint.device) < (8, 9):
        raise CheckpointError(
            "engine.quantization: fp8 needs a GPU of compute capability 8.9 or higher; set it to none"
        )
    peaks = _measure(checkpoint, model, fewest_features)
    for name, peak in peaks.items():
        checkpoint.unet.set_submodule(name, Fp8Linear(checkpoint.unet.get_submodule(name), peak, keep))
    return len(peaks)


def large_linears(unet: nn.Module, fewest_features: int) -> Sequence[tuple[str, nn.Linear]]:
    """Return the linear layers of the transformer blocks that are worth replacing, with their names."""
    return [
        (name, module)
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear)
        and "transformer_blocks" in name
        and min(module.in_features, module.out_features) >= fewest_features
    ]


@torch.inference_mode()
def _measure(checkpoint: Checkpoint, model: ModelConfig, fewest_features: int) -> Mapping[str, torch.Tensor]:
    """Return the largest absolute input of every layer to be replaced, by the layer's name."""
    peaks: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def look(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            peak = inputs[0].abs().amax()
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        return look

    hooks = [
        linear.register_forward_pre_hook(watch(name))
        for name, linear in large_linears(checkpoint.unet, fewest_features)
    ]
    reader, encoder = (
        PromptReader(checkpoint.pipe),
        PromptEncoder(checkpoint.pipe, checkpoint.device, len(_PROMPTS) + 2),
    )
    denoiser = Denoiser(checkpoint, eager(checkpoint.unet))  # a CUDA graph does not call hooks
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
    for hook in hooks:
        hook.remove()
    return peaks
