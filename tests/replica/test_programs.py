"""Compiled UNets on the CPU; recordings of CUDA graphs need a GPU."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.utils import counters

from serve_app.config import Compile, ModelConfig
from serve_app.messages import Slot
from serve_app.replica import decode, programs
from serve_app.replica.attention import blocks, prepare, prompt_context
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.decode import Decoder
from serve_app.replica.denoise import Denoiser
from serve_app.replica.programs import AsItIs, make_program, use_compile_cache
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.trajectory import Trajectory
from tests.conftest import SDXL_BLOCKS, make_slot

# The compiler's own imports give them.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.timeout(600)]


@pytest.fixture
def fresh(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkpoint]:
    """A checkpoint of its own, since compiling changes it, and a compiler that knows nothing yet."""
    monkeypatch.setitem(os.environ, "TORCHINDUCTOR_CACHE_DIR", "")
    use_compile_cache(str(tmp_path))
    torch._dynamo.reset()
    counters.clear()
    torch.set_num_threads(1)
    yield load_checkpoint(ModelConfig(path=str(tiny_path)), torch.device("cpu"))
    torch._dynamo.reset()


def trajectory(checkpoint: Checkpoint, slot: Slot) -> Trajectory:
    encoder = PromptEncoder(checkpoint.pipe, checkpoint.device, 4)
    return Trajectory(slot, checkpoint, encoder.conditions(slot))


def compiled_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def fail_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would run as it is, because nothing compiled fits, shall be an error."""
    for module in (programs, decode):
        monkeypatch.setattr(module, "compiling_nothing", lambda: torch.compiler.set_stance("fail_on_recompile"))


@pytest.mark.parametrize("mode", ["regional", "full"])
@torch.inference_mode()
def test_compiled_equals_as_it_is(mode: Compile, fresh: Checkpoint, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiled = Denoiser(checkpoint, AsItIs(checkpoint.unet)), Denoiser(fresh, make_program(fresh.unet, mode))
    compiled.warm_up([trajectory(fresh, make_slot())])
    warm = compiled_graphs()
    assert warm > 0
    fail_where_nothing_fits(monkeypatch)
    for images in (1, 3):
        slots = [make_slot(seed=seed) for seed in range(images)]
        expected = plain.predict([trajectory(checkpoint, slot) for slot in slots])
        for ours, theirs in zip(compiled.predict([trajectory(fresh, slot) for slot in slots]), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert compiled_graphs() == warm, "one compilation does for any number of images"


@torch.inference_mode()
def test_every_size_has_a_program_of_its_own(fresh: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = Denoiser(fresh, make_program(fresh.unet, "full"))
    for width in (64, 128):
        denoiser.warm_up([trajectory(fresh, make_slot(width=width))])
    assert compiled_graphs() == 2
    fail_where_nothing_fits(monkeypatch)
    for width in (64, 128):
        denoiser.predict([trajectory(fresh, make_slot(width=width))])
    with pytest.raises(RuntimeError, match="fail_on_recompile"):
        denoiser.predict([trajectory(fresh, make_slot(width=192))])


@torch.inference_mode()
def test_blocks_of_one_width_share_their_compilations(fresh: Checkpoint) -> None:
    """SDXL has 70 blocks of two widths, here arranged as it has them; a single row is compiled for by itself."""
    arranged = {**SDXL_BLOCKS, "block_out_channels": (32, 32, 64), "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (2, 2, 4)}
    unet = UNet2DConditionModel.from_config({**fresh.unet.config, **arranged}).eval().requires_grad_(False)
    prepare(unet)
    assert len(list(blocks(unet))) == 70
    tokens = torch.randn(2, 77, unet.config.cross_attention_dim)
    inputs = (torch.randn(2, 4, 16, 16), torch.full((2,), 500.0), prompt_context(unet, tokens), torch.randn(2, 32), torch.zeros(2, 6))
    plain = AsItIs(unet)(*inputs)
    program = make_program(unet, "regional")
    program.warm_up(*inputs)
    assert compiled_graphs() == 4
    torch.testing.assert_close(program(*inputs), plain, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_what_was_not_warmed_up_works_and_compiles_nothing(fresh: Checkpoint, checkpoint: Checkpoint) -> None:
    denoiser, decoder = Denoiser(fresh, make_program(fresh.unet, "full")), Decoder(fresh, "full")
    for slot in (make_slot(width=128), make_slot(guidance_scale=0)):
        ours = denoiser.predict([trajectory(fresh, slot)])[0]
        torch.testing.assert_close(ours, Denoiser(checkpoint, AsItIs(checkpoint.unet)).predict([trajectory(checkpoint, slot)])[0])
    assert decoder.decode(torch.zeros(1, 4, 8, 8)).wait().shape == (64, 64, 3)
    assert compiled_graphs() == 0


@torch.inference_mode()
def test_a_second_start_finds_its_kernels_compiled(fresh: Checkpoint) -> None:
    for hits_wanted in (False, True):
        torch._dynamo.reset()
        counters.clear()
        decoder = Decoder(fresh, "full")
        decoder.warm_up(torch.zeros(1, 4, 8, 8))
        assert compiled_graphs() == 1
        assert bool(counters["aot_autograd"]["autograd_cache_hit"] or counters["inductor"]["fxgraph_cache_hit"]) == hits_wanted


@torch.inference_mode()
def test_a_decoder_compiles_for_the_size_it_was_warmed_up_for(fresh: Checkpoint, checkpoint: Checkpoint) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    decoder = Decoder(fresh, "full")
    decoder.warm_up(latents)
    assert compiled_graphs() == 1
    ours, theirs = decoder.decode(latents).wait(), Decoder(checkpoint, "none").decode(latents).wait()
    assert abs(ours.astype(int) - theirs.astype(int)).max() <= 1
