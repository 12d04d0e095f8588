"""Loads the checkpoint that `ModelConfig` names: a diffusers folder, a hub id or a single file."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    SchedulerMixin,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.recipe import SchedulerName
from serve_app.replica.attention import prepare
from serve_app.replica.device import fast_layout
from serve_app.replica.hashing import checkpoint_hash
from serve_app.replica.kept_models import KeptModels
from serve_app.replica.norms import use_channels_last_norms
from serve_app.replica.placing import Placer
from serve_app.replica.refusals import refused
from serve_app.replica.scheduler_config import (
    check_usable,
    default_scheduler,
    departures,
    effective_config,
    fitting_schedulers,
    model_settings,
    said,
)
from serve_app.replica.schedulers import PreparedSchedulers
from serve_app.replica.sources import TOKENIZERS, Sources, find_sources, model_name, model_revision
from serve_app.replica.supported import check_configs, check_files
from serve_app.replica.vae_attention import use_products
from serve_app.replica.weights import load_part, load_preview_vae, load_scheduler, load_tokenizer
from serve_app.schemas import ModelInfo

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model. The pipeline only holds text encoders, tokenizers and config; it is never called.

    The UNet takes a prompt's context instead of its tokens, see `attention.prepare`. `schedulers` are those that can
    sample it, all made from `scheduler_config` (`prepared_schedulers`). `scheduler` is the default of requests.
    `kept_models` are its models as compiled before.
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
    kept_models: KeptModels = field(default_factory=KeptModels, repr=False)
    prepared_schedulers: PreparedSchedulers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prepared_schedulers", PreparedSchedulers(self.scheduler_config))

    @property
    def info(self) -> ModelInfo:
        """What image metadata says about the model. Waits for the hash of the weights, which is slower than loading."""
        return self.named.result().model_copy(update=said(self.scheduler_config))


def load_checkpoint(config: ModelConfig, device: torch.device) -> Checkpoint:
    """Load the checkpoint that `config` names onto `device`.

    Raises CheckpointError if it cannot be found or read, is incomplete, or is not an SDXL text-to-image model that this
    engine can run. Errors that show in configs and headers are raised before the weights are read.
    """
    dtype = _DTYPES[config.dtype]
    placer = Placer(device, dtype)
    sources = find_supported(config)
    own = load_scheduler(sources)
    scheduler_config = effective_config(own, model_settings(config), sources.markers.sampling)
    scheduler = default_scheduler(own, scheduler_config, config.scheduler)
    check_usable(scheduler_config, partial(sources.fault, name="scheduler"))
    beside = ThreadPoolExecutor(1, thread_name_prefix="hash")
    named = beside.submit(_info, sources, config)
    beside.shutdown(wait=False)
    pipe = _load_pipeline(sources, own, placer)
    preview_vae = load_preview_vae(sources.preview, placer) if sources.preview else None
    placer.wait()
    _lay_out(pipe, device)
    pipe.unet.eval().requires_grad_(False)
    prepare(pipe.unet)
    pipe.vae.eval().requires_grad_(False)
    if dtype == torch.float16 and pipe.vae.config.force_upcast:
        # SDXL's own VAE overflows in float16. bfloat16 has the range and needs no upcast.
        pipe.vae.to(torch.bfloat16)
    if device.type == "cuda" and pipe.vae.dtype != torch.float32:
        use_products(pipe.vae)
    return Checkpoint(
        pipe=pipe,
        unet=pipe.unet,
        vae=pipe.vae,
        preview_vae=preview_vae.to(memory_format=fast_layout(device)).eval().requires_grad_(False)
        if preview_vae
        else None,
        scheduler=scheduler,
        schedulers=fitting_schedulers(scheduler_config),
        scheduler_config=scheduler_config,
        device=device,
        dtype=dtype,
        named=named,
    )


def find_supported(config: ModelConfig) -> Sources:
    """Return the files of everything that `config` names.

    Raises CheckpointError if they cannot be found, or if configs and headers show that they cannot be served.
    """
    with refused(lambda words: CheckpointError(f"model.path: {config.path} {words}"), "has files that cannot be read"):
        sources = find_sources(config)
        check_configs(sources)
        check_files(sources)
    return sources


def _info(sources: Sources, config: ModelConfig) -> ModelInfo:
    return ModelInfo(
        name=config.name or model_name(sources.path, config),
        revision=model_revision(sources.path, config),
        hash=checkpoint_hash(
            sources, departures({**sources.scheduler_config, **sources.markers.sampling}, model_settings(config))
        ),
    )


def quiet_progress_bars() -> None:
    """Keep the libraries' progress bars out of the service's log."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _load_pipeline(sources: Sources, scheduler: SchedulerMixin, placer: Placer) -> StableDiffusionXLPipeline:
    tokenizers = {name: load_tokenizer(sources, name) for name in TOKENIZERS}  # first, because they load fast
    # The largest next: it is placed while the others are read.
    parts = sorted(sources.parts.items(), key=lambda part: part[0] != "unet")
    models = {name: load_part(name, part, placer) for name, part in parts}
    with refused(sources.fault, "cannot be put together"):
        return StableDiffusionXLPipeline.from_pretrained(
            sources.root,
            **tokenizers,
            **models,
            scheduler=scheduler,
            image_encoder=None,
            feature_extractor=None,
            # By default diffusers adds a watermark, which changes pixels, if an optional library is installed.
            add_watermarker=False,
        )


def _lay_out(pipe: StableDiffusionXLPipeline, device: torch.device) -> None:
    """Give a pipeline the memory layout that is fast on its device.

    On the CPU the weights are copied out of the memory-mapped file: CPU kernels round differently by memory alignment,
    and mmap gives arbitrary alignment.
    """
    layout = fast_layout(device)
    for module in (pipe.unet, pipe.vae):
        module.to(memory_format=layout)
        if layout == torch.channels_last:
            use_channels_last_norms(module)
    if device.type == "cpu":
        for module in (pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae):
            for parameter in module.parameters():
                parameter.data = parameter.data.clone()
