"""Loads what a replica needs to generate, according to its arguments."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from serve_app.config import AppArgs, ModelConfig
from serve_app.errors import CheckpointError
from serve_app.models import EMBEDDED
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint, quiet_progress_bars
from serve_app.replica.device import prepare_device
from serve_app.replica.half import use_kernels
from serve_app.replica.hub import is_hub_id
from serve_app.replica.kept_files import kept_file, use_compile_cache
from serve_app.replica.kept_models import KeptModels
from serve_app.replica.kernels import have_kernels
from serve_app.replica.paths import is_there, user_path
from serve_app.replica.quantize import to_fp8
from serve_app.replica.scheduler_config import check_steps

logger = logging.getLogger("ray.serve")

_SIDE = 8
"""Widths and heights are multiples of this many pixels."""


def load(args: AppArgs) -> Checkpoint:
    """Prepare this process and return its loaded checkpoint.

    Raises CheckpointError, DeviceError, ValueError and diffusers' own errors.
    """
    quiet_progress_bars()
    # On GPUs whatever `engine.compile` says: kernels of ours are compiled as well.
    if (
        args.num_gpus
        or args.engine.compile != "none"
        or args.engine.compile_cache
        or args.engine.quantization != "none"
    ):
        use_compile_cache(args.engine.compile_cache)
    check_used(args.model)
    device = prepare_device(args.num_gpus, args.num_cpus)
    kept = KeptModels(partial(_noted, args, device)) if args.engine.compile == "full" else KeptModels()
    checkpoint = replace(load_checkpoint(args.model, device), kept_models=kept)
    check_steps(checkpoint.scheduler_config, args.limits.max_steps)
    if _SIDE % (scale := checkpoint.pipe.vae_scale_factor):
        raise CheckpointError(
            f"model.path: its VAE decodes a latent to {scale} pixels, but sizes are multiples of {_SIDE}"
        )
    if args.engine.quantization == "fp8" and not to_fp8(checkpoint, args.model, keep=args.adapters.path is not None):
        logger.warning("engine.quantization: fp8 has no effect, the model has no layers large enough")
    if have_kernels(checkpoint.device):
        logger.info(
            "16 bits: %d layers by kernels of our own", use_kernels(checkpoint.unet) + use_kernels(checkpoint.vae)
        )
    return checkpoint


def _noted(args: AppArgs, device: torch.device) -> Path:
    """Return the file in which a start with this model and engine notes the compiled models it has read."""
    return kept_file("start", "json", device, [args.model.model_dump_json(), args.engine.model_dump_json()])


def check_used(model: ModelConfig) -> None:
    """Raise CheckpointError if a setting has no effect on this kind of checkpoint: it is probably a mistake."""
    path = user_path(model.path)
    unused: tuple[str, ...]
    if model.path == EMBEDDED:
        kind, unused = "the embedded model", ("revision", "variant", "config_path")
    elif is_there("path", path) and path.is_file():
        kind, unused = f"{path}, a single file", ("revision", "variant")
    elif path.is_dir():
        kind, unused = f"{path}, a local folder", ("revision", "config_path")
    elif is_hub_id(model.path):
        kind, unused = f"{path}, a hub id", ("config_path",)
    else:
        return  # the loader reports what is wrong with the path
    for name in unused:
        if (value := getattr(model, name)) is not None:
            raise CheckpointError(f"model.{name}: {value} has no effect on {kind}; leave it out, or change model.path")
