"""Compiled models on the CPU; CUDA graphs need a GPU."""

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.graph import GraphLowering

from serve_app.config import Compile, ModelConfig
from serve_app.messages import Slot
from serve_app.models import PREVIEW_FOLDER
from serve_app.replica import compilation, unet
from serve_app.replica.attention import blocks, prepare, prompt_context
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.conditioning import Conditioning
from serve_app.replica.decode import Decoder
from serve_app.replica.denoise import Denoiser
from serve_app.replica.previews import PreviewDecoder
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import UNetInputs, eager, make_forward
from tests.conftest import ONE_LEVEL, SDXL_BLOCKS, make_slot
from tests.replica import layer
from tests.replica.layer import compilations, fail_where_nothing_fits

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # from the compiler's own imports
    # diffusers calls a cached function to get torch's version.
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`"),
    pytest.mark.timeout(600),
]

ONE_LAYER = {
    "layers_per_block": 0,  # one on the way up
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}


@pytest.fixture(scope="module")
def small_path(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a UNet of one residual and one transformer block, and VAEs of two levels.

    They are compiled soonest: each kernel takes half a second of the C++ compiler.
    """
    path = Path(shutil.copytree(tiny_path, tmp_path_factory.mktemp("small") / "small"))
    two_levels = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "layers_per_block": 0,
    }
    two_tiny_levels = {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for model, folder, changes in (
            (UNet2DConditionModel, "unet", {**ONE_LEVEL, **ONE_LAYER}),
            (AutoencoderKL, "vae", two_levels),
            (AutoencoderTiny, PREVIEW_FOLDER, two_tiny_levels),
        ):
            model.from_config({**model.load_config(path / folder), **changes}).save_pretrained(path / folder)
    return path


@pytest.fixture(scope="module")
def plain(small_path: Path) -> Checkpoint:
    """The checkpoint that nothing of is compiled."""
    return load_checkpoint(ModelConfig(path=str(small_path)), torch.device("cpu"))


@pytest.fixture
def fresh(small_path: Path, compiler: None) -> Checkpoint:
    """A checkpoint of its own, since compiling changes it, and nothing compiled yet."""
    return load_checkpoint(ModelConfig(path=str(small_path)), torch.device("cpu"))


def trajectory(checkpoint: Checkpoint, slot: Slot) -> Trajectory:
    encoder = PromptEncoder(checkpoint.pipe, checkpoint.device, 4)
    prompts = PromptReader(checkpoint.pipe).read(slot.recipe)
    return Trajectory.of(slot.recipe, slot.seed, checkpoint, encoder.conditions(prompts))


@pytest.fixture
def chosen_by_rule(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list that receives, for each generated graph, whether the compiler was forbidden to choose by timing."""
    seen: list[bool] = []
    codegen = GraphLowering.codegen

    def noted(graph: GraphLowering) -> Any:
        seen.append(inductor.deterministic)
        return codegen(graph)

    monkeypatch.setattr(GraphLowering, "codegen", noted)
    return seen


@pytest.mark.parametrize("mode", ["regional", "full"])
@torch.inference_mode()
def test_compiled_equals_eager(
    mode: Compile,
    fresh: Checkpoint,
    plain: Checkpoint,
    chosen_by_rule: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, compiled = Denoiser(plain, eager(plain.unet)), Denoiser(fresh, make_forward(fresh.unet, mode))
    for images in (1, 2):
        compiled.warm_up([trajectory(fresh, make_slot()) for _ in range(images)])
    warm = compilations()
    assert warm > 0
    assert chosen_by_rule
    assert all(chosen_by_rule), (
        "block sizes chosen by timing would differ between processes, and with them the order of sums"
    )
    fail_where_nothing_fits(monkeypatch)
    for images in (1, 2, 3):
        slots = [make_slot(seed=seed) for seed in range(images)]
        expected = own.predict([trajectory(plain, slot) for slot in slots])
        for ours, theirs in zip(compiled.predict([trajectory(fresh, slot) for slot in slots]), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert compilations() == warm, "two images and more share a compilation"


@torch.inference_mode()
def test_every_size_has_a_compiled_model_of_its_own(compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = layer.compiled()
    fail_where_nothing_fits(monkeypatch)
    for width in (8, 16, 8):
        forward.warm_up(torch.zeros(1, 4, 8, width))
        assert forward(torch.zeros(1, 4, 8, width)).shape == (1, 8, 8, width)
    assert compilations() == 2
    with pytest.raises(AssertionError, match="nothing compiled fits"):
        forward(torch.zeros(1, 4, 8, 24))


@torch.inference_mode()
def test_blocks_of_one_width_share_their_compilations(fresh: Checkpoint) -> None:
    """SDXL has 70 blocks of two widths, as here. A single row is compiled separately."""
    arranged = {
        **SDXL_BLOCKS,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "block_out_channels": (32, 32, 64),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (2, 2, 4),
    }
    unet = UNet2DConditionModel.from_config({**fresh.unet.config, **arranged}).eval().requires_grad_(False)
    prepare(unet)
    assert len(list(blocks(unet))) == 70
    tokens = torch.randn(2, 77, unet.config.cross_attention_dim)
    inputs = (
        torch.randn(2, 4, 16, 16),
        torch.full((2,), 500.0),
        prompt_context(unet, tokens),
        torch.randn(2, 32),
        torch.zeros(2, 6),
    )
    plain = eager(unet)(*inputs)
    forward = make_forward(unet, "regional")
    forward.warm_up(*inputs)
    assert counters["stats"]["unique_graphs"] == 4
    torch.testing.assert_close(forward(*inputs), plain, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_what_was_not_warmed_up_works_and_compiles_nothing(fresh: Checkpoint, plain: Checkpoint) -> None:
    denoiser, decoder = Denoiser(fresh, make_forward(fresh.unet, "full")), Decoder(fresh, "full")
    for slot in (make_slot(width=128), make_slot(guidance_scale=0)):
        ours = denoiser.predict([trajectory(fresh, slot)])[0]
        torch.testing.assert_close(ours, Denoiser(plain, eager(plain.unet)).predict([trajectory(plain, slot)])[0])
    assert decoder.decode(torch.zeros(1, 4, 8, 8)).wait().shape == (16, 16, 3)
    assert compilations() == 0


def weighted(_: Any, sample: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Stand in for a UNet: a function whose inputs do not all have the sample's shape."""
    return sample * context.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("rows", [1, 3])
@torch.inference_mode()
def test_inputs_beyond_the_first_have_shapes_of_their_own(
    rows: int, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for prompts of two lengths: compiling one must not prevent compiling the other."""
    forward = compilation.Compiled(weighted, layer.Layer())
    fail_where_nothing_fits(monkeypatch)
    sample = torch.ones(rows, 8)
    for length in (77, 154, 77):
        forward.warm_up(sample, torch.ones(rows, length))
        assert torch.equal(forward(sample, torch.ones(rows, length)), sample)
    assert compilations() == 2
    with pytest.raises(AssertionError, match="nothing compiled fits"):
        forward(sample, torch.ones(rows, 231))


def test_a_compiled_unet_takes_its_named_inputs_in_their_order() -> None:
    assert UNetInputs._fields == tuple(inspect.signature(unet._predict).parameters)[1:]
    assert UNetInputs._fields[-len(Conditioning._fields) :] == Conditioning._fields


@torch.inference_mode()
def test_a_number_of_rows_that_matters_to_the_compiler_has_its_own_model(
    compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU the compiler uses another convolution from 16 rows on, and adds a guard for that."""
    forward, plain = layer.compiled(), layer.Layer()
    for rows in (4, 16):
        forward.warm_up(torch.zeros(rows, 4, 8, 8))
    for rows in (3, 15, 16, 17):  # 17 was not warmed up and runs eagerly
        latents = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(rows))
        torch.testing.assert_close(forward(latents), plain.conv(latents), atol=1e-4, rtol=1e-4)
    fail_where_nothing_fits(monkeypatch)
    for rows in (3, 15, 16):
        forward(torch.zeros(rows, 4, 8, 8))
    with pytest.raises(AssertionError, match="nothing compiled fits"):
        forward(torch.zeros(17, 4, 8, 8))


@torch.inference_mode()
def test_a_compiled_model_is_kept_for_what_it_depends_on(compiler: None, kept: Path) -> None:
    """It is reused for other weights of the same architecture.

    It is not reused for another precision or, on the CPU, another number of threads.
    """
    other = layer.Layer(seed=1)
    for model in (layer.Layer(), other):
        layer.compiled(model).warm_up(layer.LATENTS)
    assert compilations() == 1
    forward = layer.compiled(other)
    forward.warm_up(layer.LATENTS)
    torch.testing.assert_close(forward(layer.LATENTS), other.conv(layer.LATENTS))
    layer.compiled(layer.Layer().bfloat16()).warm_up(layer.LATENTS.bfloat16())
    assert compilations() == 2
    torch.set_num_threads(2)
    layer.compiled().warm_up(layer.LATENTS)
    torch.set_num_threads(1)
    assert compilations() == 3
    assert len(list(kept.glob("*.bin"))) == 3


@torch.inference_mode()
def test_compiled_decoders_equal_eager_ones(
    fresh: Checkpoint, plain: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any memory layout: a scheduler may return latents in the layout of the UNet's output."""
    assert fresh.preview_vae is not None
    assert plain.preview_vae is not None
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    compiled: tuple[Decoder | PreviewDecoder, ...] = (
        Decoder(fresh, "full"),
        PreviewDecoder(fresh, fresh.preview_vae, 64, "full"),
    )
    eager_ones: tuple[Decoder | PreviewDecoder, ...] = (
        Decoder(plain, "none"),
        PreviewDecoder(plain, plain.preview_vae, 64, "none"),
    )
    for decoder in compiled:
        decoder.warm_up(latents)
    assert compilations() == 2
    fail_where_nothing_fits(monkeypatch)
    for ours, theirs in zip(compiled, eager_ones, strict=True):
        expected = theirs.decode(latents).wait().astype(int)
        for given in (latents, latents.contiguous(memory_format=torch.channels_last)):
            assert abs(ours.decode(given).wait().astype(int) - expected).max() <= 1
