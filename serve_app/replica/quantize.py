"""Runs large layers in 8-bit floats: half the bytes, and twice the rate on GPUs that support them.

Everywhere these are the UNet's linear layers; where there are kernels of ours for them, its 3x3 convolutions and those
of the VAE's decoder too.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import nn

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.recipe import Recipe
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import Decoder
from serve_app.replica.denoise import Denoiser
from serve_app.replica.fp8 import Fp8Conv, Fp8Linear, use_geglu
from serve_app.replica.kernels import convolutions, have_kernels
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import eager

logger = logging.getLogger("ray.serve")

_FEWEST_FEATURES = 640  # in smaller layers, converting the input costs more than it saves
_ONCE_A_PROMPT = (".attn2.to_k", ".attn2.to_v")
_STEPS = 8
# The layers' inputs depend little on the subject; these prompts differ in length, light and detail.
_PROMPTS = (
    "a photo of a cat",
    "a crowded market street at night, neon signs, rain, highly detailed",
    "a white cup on a white table",
    "portrait in oil",
)
_NEGATIVE = "blurry, low quality"
_ROOM = 8
"""By how much the VAE's inputs may exceed the measured ones: each picture is decoded once, so that nothing makes up for
what is cut. Being floats, they lose nothing: 46.7 dB PSNR to bfloat16 with 1 as with 64 (embedded model).
"""

_Place = tuple[nn.Module, str]
"""A model, and a layer's name in it."""


def to_fp8(
    checkpoint: Checkpoint,
    model: ModelConfig,
    fewest_features: int = _FEWEST_FEATURES,
    keep: bool = False,
    kernels: bool | None = None,
) -> int:
    """Replace the linear layers of the UNet's transformer blocks, and its and the VAE's convolutions; return how many.

    `keep` keeps the UNet's weights too, for adapters. `kernels` says whether to use our own; None: where they run.

    The scales of their inputs are measured once, on a few pictures, and then fixed: a scale per call would need another
    pass over the data, which costs what the matrix product gains. Every replica measures the same scales.
    Raises CheckpointError if the GPU does not support 8-bit floats.
    """
    if checkpoint.device.type == "cuda" and torch.cuda.get_device_capability(checkpoint.device) < (8, 9):
        raise CheckpointError(
            "engine.quantization: fp8 needs a GPU of compute capability 8.9 or higher; set it to none"
        )
    kernels = have_kernels(checkpoint.device) if kernels is None else kernels
    unet, decoder = checkpoint.unet, checkpoint.vae.decoder
    tiny = isinstance(checkpoint.vae, AutoencoderTiny)
    layers: dict[_Place, nn.Linear | nn.Conv2d] = {
        (unet, name): layer for name, layer in large_linears(unet, fewest_features)
    }
    for owner in () if not kernels else (unet,) if tiny else (unet, decoder):
        layers |= {(owner, name): layer for name, layer in convolutions(owner).items()}
    peaks = _measure(checkpoint, model, layers)
    for (owner, name), peak in peaks.items():
        layer = layers[owner, name]
        kind = Fp8Conv if isinstance(layer, nn.Conv2d) else Fp8Linear
        room = _ROOM if owner is decoder else 1
        owner.set_submodule(name, kind(layer, room * peak, keep and owner is unet))
    if kernels:
        use_geglu(unet)
    logger.info("fp8: %d layers, by %s", len(peaks), "kernels of our own" if kernels else "torch's operators")
    return len(peaks)


def large_linears(unet: nn.Module, fewest_features: int) -> Sequence[tuple[str, nn.Linear]]:
    """Return the linear layers of the transformer blocks that are worth replacing, with their names.

    Not those that run once a prompt: they would only become less exact.
    """
    return [
        (name, module)
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear)
        and "transformer_blocks" in name
        and not name.endswith(_ONCE_A_PROMPT)
        and min(module.in_features, module.out_features) >= fewest_features
    ]


@torch.inference_mode()
def _measure(
    checkpoint: Checkpoint, model: ModelConfig, layers: Mapping[_Place, nn.Linear | nn.Conv2d]
) -> Mapping[_Place, torch.Tensor]:
    """Return the largest absolute input of every layer to be replaced."""
    peaks: dict[_Place, torch.Tensor] = {}

    def watch(place: _Place) -> Any:
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
