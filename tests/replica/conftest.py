"""Checkpoints to load: a copy of the tiny one, and one with SDXL's blocks, as folder and as file. And a compiler."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from serve_app.replica.kept_files import use_compile_cache
from tests.conftest import SDXL_BLOCKS
from tests.replica import layer
from tests.single_file import save_single_file

MODELS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="session")
def kernels(request: pytest.FixtureRequest) -> Path:
    """What torch keeps of single kernels: the same ones come up in many tests, and compiling them takes longest.

    Later runs find them where pytest keeps things (`--cache-clear` empties it). Whole graphs are compiled each time.
    """
    assert request.config.cache
    folder = request.config.cache.mkdir("kernels")
    for graphs in ("fxgraph", "aotautograd"):
        for path in folder.glob(f"**/{graphs}"):
            shutil.rmtree(path)
    return folder


@pytest.fixture
def kept(kernels: Path) -> Path:
    """The folder of compiled models, empty at the start of a test."""
    folder = kernels / f"user-{os.getuid()}" / "parallel-sdxl"
    shutil.rmtree(folder, ignore_errors=True)
    return folder


@pytest.fixture
def compiler(kernels: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that has compiled nothing yet."""
    monkeypatch.setitem(os.environ, "TORCHINDUCTOR_CACHE_DIR", "")
    use_compile_cache(str(kernels))
    torch._dynamo.reset()
    counters.clear()
    torch.set_num_threads(1)
    with inductor.patch(layer.CHEAPLY):
        yield
    torch._dynamo.reset()


@pytest.fixture
def copy(tiny_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_path, tmp_path / "copy"))


@pytest.fixture(scope="session")
def pipe(tiny_path: Path) -> StableDiffusionXLPipeline:
    """The tiny model with SDXL's arrangement of blocks.

    The text encoders' widths differ, because diffusers distinguishes the two by width.
    """
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_path, add_watermarker=False)
    width = 2 * pipe.text_encoder.config.hidden_size
    text = {**pipe.text_encoder_2.config.to_dict(), "hidden_size": width, "projection_dim": width}
    unet = {
        **pipe.unet.config,
        **SDXL_BLOCKS,
        "block_out_channels": (32, 64, 64),
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (2, 4, 4),
        "cross_attention_dim": pipe.text_encoder.config.hidden_size + width,
        "projection_class_embeddings_input_dim": width + 6 * pipe.unet.config.addition_time_embed_dim,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.register_modules(
            unet=UNet2DConditionModel.from_config(unet),
            vae=AutoencoderKL.from_config({**pipe.vae.config, "layers_per_block": 2}),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig.from_dict(text)),
        )
        randomize(*(getattr(pipe, name) for name in MODELS))
    return pipe


def randomize(*models: torch.nn.Module) -> None:
    """Randomize norms and biases: they start as ones and zeros, so a test would not see them swapped."""
    for model in models:
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.02)


@pytest.fixture(scope="session")
def folder(pipe: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def configs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder without weights, so that all of them must come from the file."""
    return Path(
        shutil.copytree(
            folder,
            tmp_path_factory.mktemp("configs"),
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.safetensors"),
        )
    )


@pytest.fixture(scope="session")
def file(pipe: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("file") / "fine-tune_v1.0.safetensors"
    save_single_file(pipe, file)
    return file


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Host names that were looked up; libraries may ignore the error and go on."""
    wanted: list[object] = []

    def refuse(host: object, *_: object, **__: object) -> None:
        wanted.append(host)
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return wanted
