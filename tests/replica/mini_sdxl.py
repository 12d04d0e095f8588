"""SDXL checkpoints as people have them, at a tiny size: real layouts, keys and configs, random weights."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file

from tests.conftest import BETAS, ZERO_SNR
from tests.replica.conftest import randomize
from tests.single_file import save_single_file

Weights = dict[str, torch.Tensor]

SSD_1B: Mapping[str, Any] = {
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
    "mid_block_type": "UNetMidBlock2D",
}
VEGA: Mapping[str, Any] = {
    "transformer_layers_per_block": (1, (1, 1), (2, 2)),
    "reverse_transformer_layers_per_block": ((2, 2, 2), (1, 1, 1), 1),
    "mid_block_type": "UNetMidBlock2D",
}
KOALA: Mapping[str, Any] = {
    "transformer_layers_per_block": (1, 2, 5),
    "layers_per_block": 1,
    "mid_block_type": None,
}
LCM: Mapping[str, Any] = {"time_cond_proj_dim": 16}
PLAYGROUND_VAE: Mapping[str, Any] = {
    "latents_mean": (-1.6574, 1.886, -1.383, 2.5155),
    "latents_std": (8.4927, 5.9022, 6.5498, 5.2299),
    "scaling_factor": 0.5,
}
LEADING = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading")


@dataclass(frozen=True)
class Given:
    """A checkpoint to serve, and diffusers' pipeline with the same weights."""

    path: Path
    stock: StableDiffusionXLPipeline
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """What checkpoints are made from: a tiny SDXL, as a pipeline and as a folder, and an empty folder."""

    pipe: StableDiffusionXLPipeline
    folder: Path
    out: Path

    @property
    def file(self) -> Path:
        return self.out / "model.safetensors"

    def with_unet(self, **changes: Any) -> StableDiffusionXLPipeline:
        """Return the pipeline with another UNet."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            unet = UNet2DConditionModel.from_config({**self.pipe.unet.config, **changes})
            randomize(unet)
        return self.having(unet=unet)

    def having(self, **components: Any) -> StableDiffusionXLPipeline:
        pipe = StableDiffusionXLPipeline(**{**self.pipe.components, **components}, add_watermarker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def rounded(self, dtype: torch.dtype) -> StableDiffusionXLPipeline:
        """Return the pipeline with weights as a file of this type holds them."""
        parts = {name: getattr(self.pipe, name) for name in ("unet", "vae", "text_encoder", "text_encoder_2")}
        copies = {}
        for name, part in parts.items():
            copies[name] = type(part)(part.config) if hasattr(part.config, "to_dict") else part.from_config(part.config)
            copies[name].load_state_dict({key: t.to(dtype).float() for key, t in part.state_dict().items()})
            copies[name].eval()
        return self.having(**copies)

    def in_folder(self, pipe: StableDiffusionXLPipeline) -> Path:
        """Save a pipeline whose UNet, VAE or scheduler is another."""
        shutil.copytree(self.folder, self.out, dirs_exist_ok=True)
        for name in ("unet", "vae", "scheduler"):
            shutil.rmtree(self.out / name)
            getattr(pipe, name).save_pretrained(self.out / name)
        index = json.loads((self.out / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", type(pipe.scheduler).__name__]
        (self.out / "model_index.json").write_text(json.dumps(index))
        return self.out

    def in_file(
        self,
        pipe: StableDiffusionXLPipeline,
        change: Callable[[Weights], object] | None = None,
        dtype: torch.dtype = torch.float32,
        metadata: dict[str, str] | None = None,
    ) -> Path:
        save_single_file(pipe, self.file, dtype)
        if change or metadata:
            weights = load_file(self.file)
            if change:
                change(weights)
            save_file({key: tensor.contiguous() for key, tensor in weights.items()}, self.file, metadata)
        return self.file


Make = Callable[[Bench], Given]


def folder_of(scheduler: SchedulerMixin, vae: Mapping[str, Any] | None = None, **unet: Any) -> Make:
    def make(bench: Bench) -> Given:
        pipe = bench.with_unet(**unet) if unet else bench.having()
        pipe.register_modules(scheduler=scheduler)
        if vae:
            pipe.register_modules(vae=_vae(pipe, vae))
        return Given(bench.in_folder(pipe), pipe)

    return make


def file_of(change: Callable[[Weights], object] | None = None, **unet: Any) -> Make:
    def make(bench: Bench) -> Given:
        pipe = bench.with_unet(**unet) if unet else bench.having()
        return Given(bench.in_file(pipe, change), pipe)

    return make


def stored_as(dtype: torch.dtype) -> Make:
    return lambda bench: Given(bench.in_file(bench.pipe, dtype=dtype), bench.rounded(dtype))


def _vae(pipe: StableDiffusionXLPipeline, changes: Mapping[str, Any]) -> AutoencoderKL:
    vae = AutoencoderKL.from_config({**pipe.vae.config, **changes})
    vae.load_state_dict(pipe.vae.state_dict())
    return vae.eval()


def _marked(*markers: str, metadata: dict[str, str] | None = None) -> Make:
    """A v-prediction model with zero terminal SNR, which the file says of itself."""

    def make(bench: Bench) -> Given:
        def mark(weights: Weights) -> None:
            weights.update({marker: torch.zeros(0) for marker in markers})

        stock = bench.having(scheduler=EulerDiscreteScheduler.from_config(LEADING.config, **ZERO_SNR))
        return Given(bench.in_file(stock, mark, metadata=metadata), stock)

    return make


def _with_ema(weights: Weights) -> None:
    unet = [key for key in weights if key.startswith("model.diffusion_model.")]
    for key in unet:
        weights["model_ema." + key.removeprefix("model.").replace(".", "")] = torch.full_like(weights[key], 9.0)
    weights |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}


def _as_kohya_saves(weights: Weights) -> None:
    """Without what the original code calls buffers, and with the training's own tensors."""
    for key in ("denoiser.sigmas", "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"):
        del weights[key]
    weights["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6052)


def _as_comfyui_saves(weights: Weights) -> None:
    del weights["denoiser.sigmas"]
    del weights["conditioner.embedders.1.model.logit_scale"]
    weights["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    weights["conditioner.embedders.0.logit_scale"] = torch.tensor(4.6052)
    weights["conditioner.embedders.0.transformer.text_projection.weight"] = torch.eye(32)


def _without_text_model(weights: Weights) -> None:
    """As transformers names the first text encoder's weights since 5.6."""
    for key in [key for key in weights if ".embedders.0.transformer.text_model." in key]:
        weights[key.replace(".text_model.", ".")] = weights.pop(key)


def _vae_named_vae(weights: Weights) -> None:
    for key in [key for key in weights if key.startswith("first_stage_model.")]:
        weights[key.replace("first_stage_model.", "vae.")] = weights.pop(key)


def _without_vae(bench: Bench) -> Given:
    def drop(weights: Weights) -> None:
        for key in [key for key in weights if key.startswith("first_stage_model.")]:
            del weights[key]

    path = bench.in_file(bench.pipe, drop)
    return Given(path, bench.having(), {"vae_path": str(bench.folder / "vae")})


def _mixed(weights: Weights) -> None:
    """Some tensors in each type that files come with; what is representable in all of them."""
    for i, (key, tensor) in enumerate(sorted(weights.items())):
        if tensor.is_floating_point():
            weights[key] = tensor.to((torch.float64, torch.float32)[i % 2])


def _mixed_file(bench: Bench) -> Given:
    return Given(bench.in_file(bench.pipe, _mixed), bench.having())


def _shards(variant: str | None = None, old_names: bool = False) -> Make:
    def make(bench: Bench) -> Given:
        shutil.copytree(bench.folder, bench.out, dirs_exist_ok=True)
        parts = ("unet", "text_encoder", "text_encoder_2", "vae")
        for name in parts:
            for file in (bench.out / name).glob("*.safetensors"):
                file.unlink()
            getattr(bench.pipe, name).save_pretrained(bench.out / name, max_shard_size="300KB", variant=variant)
        if old_names:
            _with_old_names(bench.out / "unet", variant or "")
        assert len([*(bench.out / "unet").glob("*.safetensors")]) > 1
        return Given(bench.out, bench.having(), {"variant": variant} if variant else {})

    return make


def _with_old_names(folder: Path, variant: str) -> None:
    """Name shards as diffusers did before 0.31: the variant comes last."""
    (index,) = folder.glob("*.index*.json")
    moved = json.loads(index.read_text())
    for file in folder.glob("*.safetensors"):
        stem = file.name.removesuffix(".safetensors").replace(f".{variant}-", "-")
        name = f"{stem}.{variant}.safetensors"
        moved["weight_map"] = {k: name if v == file.name else v for k, v in moved["weight_map"].items()}
        file.rename(folder / name)
    index.write_text(json.dumps(moved))


def _variant(bench: Bench) -> Given:
    """Files of another type beside the plain ones, which differ."""
    shutil.copytree(bench.folder, bench.out, dirs_exist_ok=True)
    stock = bench.rounded(torch.float16)
    for name in ("unet", "text_encoder", "text_encoder_2", "vae"):
        (file,) = (bench.out / name).glob("*.safetensors")
        halves = {key: t.half() if t.is_floating_point() else t for key, t in load_file(file).items()}
        save_file(halves, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
        save_file({key: torch.zeros_like(t) for key, t in halves.items()}, file, {"format": "pt"})
    return Given(bench.out, stock, {"variant": "fp16"})


def _in_doubles(bench: Bench) -> Given:
    shutil.copytree(bench.folder, bench.out, dirs_exist_ok=True)
    for file in bench.out.glob("*/*.safetensors"):
        save_file(
            {key: t.double() if t.is_floating_point() else t for key, t in load_file(file).items()},
            file,
            {"format": "pt"},
        )
    return Given(bench.out, bench.having())


def _playground_file(bench: Bench) -> Given:
    stock = bench.having(scheduler=EDMDPMSolverMultistepScheduler())
    stock.register_modules(vae=_vae(stock, PLAYGROUND_VAE))

    def mark(weights: Weights) -> None:
        weights["edm_mean"] = torch.tensor(PLAYGROUND_VAE["latents_mean"])[None, :, None, None]
        weights["edm_std"] = torch.tensor(PLAYGROUND_VAE["latents_std"])[None, :, None, None]

    return Given(bench.in_file(stock, mark), stock)


def _cosxl_file(bench: Bench) -> Given:
    levels = {"sigma_max": 120.0, "sigma_min": 0.002}
    own = EDMEulerScheduler(**levels, sigma_data=1.0, prediction_type="v_prediction", sigma_schedule="exponential")

    def mark(weights: Weights) -> None:
        weights.update({f"edm_vpred.{name}": torch.tensor(level) for name, level in levels.items()})

    stock = bench.having(scheduler=own)
    return Given(bench.in_file(stock, mark), stock)


SERVED: Mapping[str, Make] = {
    "SDXL base, folder": folder_of(LEADING),
    "SDXL base, single file": file_of(),
    "Single file with a VAE under `vae.`": file_of(_vae_named_vae),
    "Single file without a VAE, and `vae_path`": _without_vae,
    "Single file with EMA weights (`model_ema.`)": file_of(_with_ema),
    "Single file as kohya's trainers save it": file_of(_as_kohya_saves),
    "Single file as ComfyUI saves it": file_of(_as_comfyui_saves),
    "Single file with a text encoder without `text_model.`": file_of(_without_text_model),
    "Single file in float16": stored_as(torch.float16),
    "Single file in bfloat16": stored_as(torch.bfloat16),
    "Single file in float8 (e4m3)": stored_as(torch.float8_e4m3fn),
    "Single file in float8 (e5m2)": stored_as(torch.float8_e5m2),
    "Single file in float64 and float32": _mixed_file,
    "Folder in float64": _in_doubles,
    "Folder with a `variant`": _variant,
    "Folder with shards": _shards(),
    "Folder with shards of a `variant`": _shards("fp16"),
    "Folder with shards of a `variant`, old names": _shards("fp16", old_names=True),
    "Turbo, folder": folder_of(EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")),
    "v-prediction with zero terminal SNR, folder": folder_of(
        DDIMScheduler(**BETAS, **ZERO_SNR, timestep_spacing="trailing", clip_sample=False)
    ),
    "v-prediction with zero terminal SNR, single file with `v_pred` and `ztsnr`": _marked("v_pred", "ztsnr"),
    "v-prediction with zero terminal SNR, single file with kohya's metadata": _marked(
        metadata={"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}
    ),
    "SSD-1B, folder": folder_of(LEADING, **SSD_1B),
    "SSD-1B, single file": file_of(**SSD_1B),
    "Vega, folder": folder_of(LEADING, **VEGA),
    "Vega, single file": file_of(**VEGA),
    "KOALA-700M, folder": folder_of(LEADING, **KOALA),
    "KOALA-700M, single file": file_of(**KOALA),
    "LCM's UNet with Euler, folder": folder_of(LEADING, **LCM),
    "LCM's UNet with Euler, single file": file_of(**LCM),
    "LCM, folder": folder_of(LCMScheduler(**BETAS), **LCM),
    "Playground v2.5, folder": folder_of(EDMDPMSolverMultistepScheduler(), PLAYGROUND_VAE),
    "Playground v2.5, single file": _playground_file,
    "CosXL, single file": _cosxl_file,
}
"""By what the table in docs/models.md calls them."""
