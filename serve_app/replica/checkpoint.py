"""From `ModelConfig` to loaded weights: a diffusers folder, a hub id or a single file, by diffusers' own loaders."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.models import PREVIEW_FOLDER
from serve_app.replica.attention import prepare
from serve_app.replica.device import fast_layout
from serve_app.replica.hashing import weights_hash
from serve_app.replica.norms import use_channels_last_norms
from serve_app.replica.schedulers import SCHEDULER_NAMES, scheduler_name
from serve_app.replica.sources import local_path, model_name, model_revision, part_path, root
from serve_app.schemas import ModelInfo, SchedulerName

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model. The pipeline lends its text encoders, tokenizers and loaders; nobody calls it.

    The UNet takes a prompt's context for its tokens, see `attention.prepare`.
    """

    pipe: StableDiffusionXLPipeline
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    preview_vae: AutoencoderTiny | None
    scheduler: SchedulerName
    device: torch.device
    dtype: torch.dtype
    named: Future[ModelInfo]

    @property
    def info(self) -> ModelInfo:
        """What pictures say of the model; waits for the hash of the weights, which takes longer than loading them."""
        return self.named.result()


def load_checkpoint(config: ModelConfig, device: torch.device) -> Checkpoint:
    """Load what `config` names onto `device`.

    Raises CheckpointError where the checkpoint is not an SDXL text-to-image model this engine can run, and
    diffusers' own errors (OSError and others) where it cannot be found or read.
    """
    dtype = _DTYPES[config.dtype]
    path = local_path(config)
    vae_path = part_path(path, config, "vae_path", config.vae_path) if config.vae_path else None
    beside = ThreadPoolExecutor(1, thread_name_prefix="hash")
    named = beside.submit(_info, path, config, vae_path)
    beside.shutdown(wait=False)
    pipe = _load_pipeline(path, config, dtype, vae_path)
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise CheckpointError("model.path: guidance-distilled UNets (time_cond_proj_dim) are not supported")
    scheduler = config.scheduler or scheduler_name({"_class_name": type(pipe.scheduler).__name__, **pipe.scheduler.config})
    if scheduler is None:
        raise CheckpointError(
            f"model.scheduler: the checkpoint's own {type(pipe.scheduler).__name__} is not supported; choose one of {', '.join(SCHEDULER_NAMES)}"
        )
    _place(pipe, device)
    pipe.unet.eval().requires_grad_(False)
    prepare(pipe.unet)
    pipe.vae.eval().requires_grad_(False)
    if dtype == torch.float16 and pipe.vae.config.force_upcast:
        # SDXL's own VAE overflows in float16; bfloat16 has the range and costs no upcast.
        pipe.vae.to(torch.bfloat16)
    preview_vae = _load_preview_vae(path, config, dtype)
    return Checkpoint(
        pipe=pipe,
        unet=pipe.unet,
        vae=pipe.vae,
        preview_vae=preview_vae.to(device, memory_format=fast_layout(device)).eval().requires_grad_(False) if preview_vae else None,
        scheduler=scheduler,
        device=device,
        dtype=dtype,
        named=named,
    )


def _info(path: Path, config: ModelConfig, vae_path: Path | None) -> ModelInfo:
    return ModelInfo(
        name=config.name or model_name(path, config),
        revision=model_revision(path, config),
        hash=weights_hash(path, config.variant, vae_path),
    )


def quiet_progress_bars() -> None:
    """Keep the libraries' progress bars out of a service's log."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _load_pipeline(path: Path, config: ModelConfig, dtype: torch.dtype, vae_path: Path | None) -> StableDiffusionXLPipeline:
    parts = {} if vae_path is None else {"vae": AutoencoderKL.from_pretrained(vae_path, dtype=dtype, use_safetensors=True)}
    # add_watermarker off: the watermark library is an extra of diffusers that would change pixels when it happens to be installed.
    if path.is_file():
        return StableDiffusionXLPipeline.from_single_file(str(path), config=config.config_path, dtype=dtype, add_watermarker=False, **parts)
    return StableDiffusionXLPipeline.from_pretrained(
        path, dtype=dtype, variant=config.variant, use_safetensors=True, low_cpu_mem_usage=True, add_watermarker=False, **parts
    )


def _load_preview_vae(path: Path, config: ModelConfig, dtype: torch.dtype) -> AutoencoderTiny | None:
    if config.preview_path:
        folder = part_path(path, config, "preview_path", config.preview_path)
    else:
        folder = root(path, config) / PREVIEW_FOLDER
        if not folder.is_dir():
            return None
    return AutoencoderTiny.from_pretrained(folder, dtype=dtype, use_safetensors=True)


def _place(pipe: StableDiffusionXLPipeline, device: torch.device) -> None:
    """Move a pipeline to its device, and into the layout that is fast there.

    On the CPU its weights are still mapped from their file, at whatever alignment they have there, and kernels round
    by alignment: copied, they give the same bits from any file.
    """
    pipe.to(device)
    layout = fast_layout(device)
    for module in (pipe.unet, pipe.vae):
        module.to(memory_format=layout)
        if layout == torch.channels_last:
            use_channels_last_norms(module)
    if device.type == "cpu":
        for module in (pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae):
            for parameter in module.parameters():
                parameter.data = parameter.data.clone()
