"""Runs large layers in 8-bit floats: half the bytes, and twice the rate on GPUs that support them.

Everywhere these are the UNet's linear layers; where there are kernels of ours for them, its 3x3 convolutions and those
of the VAE's decoder too.
"""

import logging
from collections.abc import Sequence

import torch
from diffusers import AutoencoderTiny
from torch import nn

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.fp8 import Fp8Conv, Fp8Linear, use_geglu
from serve_app.replica.kernels import convolutions, have_kernels
from serve_app.replica.peaks import Place, peaks_of

logger = logging.getLogger("ray.serve")

_FEWEST_FEATURES = 640  # in smaller layers, converting the input costs more than it saves
_ONCE_A_PROMPT = (".attn2.to_k", ".attn2.to_v")
_ROOM = 8
"""By how much the VAE's inputs may exceed the measured ones: each picture is decoded once, so that nothing makes up for
what is cut. Being floats, they lose nothing: 46.7 dB PSNR to bfloat16 with 1 as with 64 (embedded model).
"""


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
    pass over the data, which costs what the matrix product gains (`peaks.py`).
    Raises CheckpointError if the GPU does not support 8-bit floats.
    """
    if checkpoint.device.type == "cuda" and torch.cuda.get_device_capability(checkpoint.device) < (8, 9):
        raise CheckpointError(
            "engine.quantization: fp8 needs a GPU of compute capability 8.9 or higher; set it to none"
        )
    kernels = have_kernels(checkpoint.device) if kernels is None else kernels
    unet, decoder = checkpoint.unet, checkpoint.vae.decoder
    tiny = isinstance(checkpoint.vae, AutoencoderTiny)
    owners: dict[str, nn.Module] = {"unet": unet, "decoder": decoder}
    layers: dict[Place, nn.Linear | nn.Conv2d] = {
        ("unet", name): layer for name, layer in large_linears(unet, fewest_features)
    }
    for of in () if not kernels else ("unet",) if tiny else ("unet", "decoder"):
        layers |= {(of, name): layer for name, layer in convolutions(owners[of]).items()}
    peaks = peaks_of(checkpoint, model, layers)
    for (of, name), peak in peaks.items():
        layer = layers[of, name]
        kind = Fp8Conv if isinstance(layer, nn.Conv2d) else Fp8Linear
        room = _ROOM if of == "decoder" else 1
        owners[of].set_submodule(name, kind(layer, room * peak, keep and of == "unet"))
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
