"""From `ModelConfig` to loaded weights: a diffusers folder, a hub id or a single file, by diffusers' own loaders."""

import hashlib
import mmap
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers.utils import logging as transformers_logging

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.models import EMBEDDED, PREVIEW_FOLDER, embedded_path
from serve_app.replica.attention import prepare
from serve_app.replica.device import fast_layout
from serve_app.replica.norms import use_channels_last_norms
from serve_app.replica.sampling import SETTINGS, config_changes, default_scheduler, effective_config, fitting_schedulers
from serve_app.schemas import ModelInfo, SchedulerName

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HASH_DIGITS = 10
_PART_FILES = ["config.json", "diffusion_pytorch_model*.safetensors"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model. The pipeline lends its text encoders, tokenizers and loaders; nobody calls it.

    The UNet takes a prompt's context for its tokens, see `attention.prepare`. `schedulers` are those that can sample
    it, all made from `scheduler_config`, and `scheduler` is the one of requests that name none.
    """

    pipe: StableDiffusionXLPipeline
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    preview_vae: AutoencoderTiny | None
    scheduler: SchedulerName
    schedulers: tuple[SchedulerName, ...]
    scheduler_config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    named: Future[ModelInfo]

    @property
    def info(self) -> ModelInfo:
        """What pictures say of the model; waits for the hash of the weights, which takes longer than loading them."""
        return self.named.result().model_copy(update={name: self.scheduler_config.get(name) for name in SETTINGS})


def load_checkpoint(config: ModelConfig, device: torch.device) -> Checkpoint:
    """Load what `config` names onto `device`.

    Raises CheckpointError where the checkpoint is not an SDXL text-to-image model this engine can run, and
    diffusers' own errors (OSError and others) where it cannot be found or read.
    """
    dtype = _DTYPES[config.dtype]
    path = local_path(config)
    changes = config_changes(path, config)
    vae_path = _part_path(path, config, "vae_path", config.vae_path) if config.vae_path else None
    beside = ThreadPoolExecutor(1, thread_name_prefix="hash")
    named = beside.submit(_info, path, config, vae_path)
    beside.shutdown(wait=False)
    pipe = _load_pipeline(path, config, dtype, vae_path)
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise CheckpointError("model.path: guidance-distilled UNets (time_cond_proj_dim) are not supported")
    scheduler_config = effective_config(pipe.scheduler, changes)
    scheduler = default_scheduler(pipe.scheduler, scheduler_config, config.scheduler)
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
        schedulers=fitting_schedulers(scheduler_config),
        scheduler_config=scheduler_config,
        device=device,
        dtype=dtype,
        named=named,
    )


def _info(path: Path, config: ModelConfig, vae_path: Path | None) -> ModelInfo:
    return ModelInfo(
        name=config.name or _name(path, config),
        revision=_revision(path, config),
        hash=weights_hash(path, config.variant, vae_path),
    )


def quiet_progress_bars() -> None:
    """Keep the libraries' progress bars out of a service's log."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def local_path(config: ModelConfig) -> Path:
    """Return where the checkpoint lies on this machine, fetching a hub id first."""
    if config.path == EMBEDDED:
        return embedded_path()
    if Path(config.path).exists():
        return Path(config.path)
    return Path(StableDiffusionXLPipeline.download(config.path, revision=config.revision, variant=config.variant, use_safetensors=True))


def weights_hash(path: Path, variant: str | None, vae_path: Path | None = None) -> str:
    """Return the first 10 hex digits of the SHA-256 of a single file, as other tools show it, or over a folder's weights.

    A VAE in the place of the checkpoint's own makes it another hash.
    """
    if path.is_file():
        digest = _sha256(path)
        return digest[:_HASH_DIGITS] if vae_path is None else _together([digest, *_digests(vae_path, None)])
    digests = [_digests(path / component, variant) for component in ("text_encoder", "text_encoder_2", "unet")]
    vae = _digests(path / "vae", variant) if vae_path is None else _digests(vae_path, None)
    return _together([*chain(*digests), *vae])


def _digests(folder: Path, variant: str | None) -> Iterator[str]:
    """Yield the SHA-256 of each file of a model's weights."""
    for file in sorted(folder.glob("*.safetensors")):
        if f".{variant}" in file.name if variant else file.name.count(".") == 1:
            yield _sha256(file)


def _together(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:_HASH_DIGITS]


def _sha256(path: Path) -> str:
    """Hash a file in one call: piece by piece, each piece would wait for the interpreter, which is busy at a start."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest()


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
        folder = _part_path(path, config, "preview_path", config.preview_path)
    else:
        folder = _root(path, config) / PREVIEW_FOLDER
        if not folder.is_dir():
            return None
    return AutoencoderTiny.from_pretrained(folder, dtype=dtype, use_safetensors=True)


def _part_path(path: Path, config: ModelConfig, setting: str, name: str) -> Path:
    """Return the folder of a model's part that `model.<setting>` names: a subfolder of the checkpoint, a local folder or a hub id, fetched first."""
    for folder in (_root(path, config) / name, Path(name)):
        if folder.is_dir():
            return folder
    try:
        return Path(snapshot_download(name, allow_patterns=_PART_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"model.{setting}: {name} is neither a subfolder of the checkpoint, nor a folder here, nor a hub id that was found"
        ) from error


def _root(path: Path, config: ModelConfig) -> Path:
    return Path(config.config_path) if path.is_file() and config.config_path else path


def _name(path: Path, config: ModelConfig) -> str:
    if path.is_file():
        return path.stem
    return path.name if config.path == EMBEDDED else Path(config.path).name  # a hub id lies in a folder named by its commit


def _revision(path: Path, config: ModelConfig) -> str | None:
    # The hub's cache names its snapshot folders by commit, which is truer than a branch name.
    snapshot = path.parent if path.is_file() else path
    return snapshot.name if snapshot.parent.name == "snapshots" else config.revision


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
