"""Compiled models on the CPU; recordings of CUDA graphs need a GPU."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.utils import counters

from serve_app.config import Compile, ModelConfig
from serve_app.messages import Slot
from serve_app.replica import programs
from serve_app.replica.attention import blocks, prepare, prompt_context
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.decode import Decoder
from serve_app.replica.denoise import Denoiser
from serve_app.replica.previews import PreviewDecoder
from serve_app.replica.programs import use_compile_cache
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import as_it_is, make_program
from tests.conftest import SDXL_BLOCKS, make_slot

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the compiler's own imports give them
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`"),  # diffusers asks for torch's version
    pytest.mark.timeout(600),
]


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


def compilations() -> int:
    """How many graphs were handed to the compiler's back end."""
    return int(counters["aot_autograd"]["total"])


def fail_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would run as it is, because nothing compiled fits, shall be an error."""

    def refuse(*_: object) -> None:
        raise AssertionError("nothing compiled fits")

    def call(self: programs.Compiled, *inputs: torch.Tensor) -> torch.Tensor:
        return self._programs.get(programs._shape(inputs), refuse)(self._module, *inputs)  # type: ignore[return-value]

    set_stance = torch.compiler.set_stance
    monkeypatch.setattr(torch.compiler, "set_stance", lambda _: set_stance("fail_on_recompile"))
    monkeypatch.setattr(programs.Compiled, "__call__", call)


@pytest.mark.parametrize("mode", ["regional", "full"])
@torch.inference_mode()
def test_compiled_equals_as_it_is(mode: Compile, fresh: Checkpoint, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiled = Denoiser(checkpoint, as_it_is(checkpoint.unet)), Denoiser(fresh, make_program(fresh.unet, mode))
    for images in (1, 2):
        compiled.warm_up([trajectory(fresh, make_slot()) for _ in range(images)])
    warm = compilations()
    assert warm > 0
    fail_where_nothing_fits(monkeypatch)
    for images in (1, 2, 3):
        slots = [make_slot(seed=seed) for seed in range(images)]
        expected = plain.predict([trajectory(checkpoint, slot) for slot in slots])
        for ours, theirs in zip(compiled.predict([trajectory(fresh, slot) for slot in slots]), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert compilations() == warm, "two images and more share a compilation"


@torch.inference_mode()
def test_every_size_has_a_program_of_its_own(fresh: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = Denoiser(fresh, make_program(fresh.unet, "full"))
    for width in (64, 128, 64):
        denoiser.warm_up([trajectory(fresh, make_slot(width=width))])
    assert compilations() == 2
    fail_where_nothing_fits(monkeypatch)
    for width in (64, 128):
        denoiser.predict([trajectory(fresh, make_slot(width=width))])
    with pytest.raises(AssertionError, match="nothing compiled fits"):
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
    plain = as_it_is(unet)(*inputs)
    program = make_program(unet, "regional")
    program.warm_up(*inputs)
    assert counters["stats"]["unique_graphs"] == 4
    torch.testing.assert_close(program(*inputs), plain, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_what_was_not_warmed_up_works_and_compiles_nothing(fresh: Checkpoint, checkpoint: Checkpoint) -> None:
    denoiser, decoder = Denoiser(fresh, make_program(fresh.unet, "full")), Decoder(fresh, "full")
    for slot in (make_slot(width=128), make_slot(guidance_scale=0)):
        ours = denoiser.predict([trajectory(fresh, slot)])[0]
        torch.testing.assert_close(ours, Denoiser(checkpoint, as_it_is(checkpoint.unet)).predict([trajectory(checkpoint, slot)])[0])
    assert decoder.decode(torch.zeros(1, 4, 8, 8)).wait().shape == (64, 64, 3)
    assert compilations() == 0


_START = """
import sys
import torch
from pathlib import Path
from serve_app.config import ModelConfig
from serve_app.replica.checkpoint import load_checkpoint
from serve_app.replica.decode import Decoder
from serve_app.replica.programs import use_compile_cache
from torch._dynamo.utils import counters

use_compile_cache(sys.argv[1])
checkpoint = load_checkpoint(ModelConfig(path=sys.argv[2]), torch.device("cpu"))
latents = torch.linspace(-2, 2, 256).view(1, 4, 8, 8)
with torch.inference_mode():
    decoder = Decoder(checkpoint, "full")
    decoder.warm_up(latents)
    print(counters["aot_autograd"]["total"], decoder.decode(latents).wait().tobytes().hex())
"""


def test_starts_share_what_one_has_compiled(tiny_path: Path, tmp_path: Path) -> None:
    """Two at the same time, as the replicas of a machine, and one later: one compiles, all paint the same."""
    command = [sys.executable, "-c", _START, str(tmp_path), str(tiny_path)]
    together = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=300)[0].split() for process in together]
    answers.append(subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=True).stdout.split())
    assert sorted(compiled for compiled, _ in answers) == ["0", "0", "1"]
    assert len({picture for _, picture in answers}) == 1
    assert answers[-1][0] == "0"


@torch.inference_mode()
def test_a_kept_program_that_cannot_be_read_is_compiled_again(fresh: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    latents = torch.zeros(1, 4, 8, 8)
    Decoder(fresh, "full").warm_up(latents)
    (kept,) = tmp_path.glob("parallel-sdxl/*.bin")
    whole = kept.read_bytes()
    kept.write_bytes(whole[:1000])
    with caplog.at_level(logging.WARNING, "ray.serve"):
        Decoder(fresh, "full").warm_up(latents)
    assert str(kept) in caplog.text
    assert len(kept.read_bytes()) > 1000
    assert compilations() == 2


@torch.inference_mode()
def test_a_program_is_kept_for_what_it_depends_on(fresh: Checkpoint, tiny_path: Path, tmp_path: Path) -> None:
    """Other weights of the same architecture use it again; another precision does not."""
    latents = torch.zeros(1, 4, 8, 8)
    other = load_checkpoint(ModelConfig(path=str(tiny_path)), torch.device("cpu"))
    for parameter in other.vae.parameters():
        parameter.data += 0.1
    for checkpoint in (fresh, other):
        Decoder(checkpoint, "full").warm_up(latents)
    assert compilations() == 1
    ours, plain = (Decoder(other, mode).decode(latents).wait().astype(int) for mode in ("full", "none"))
    assert abs(ours - plain).max() <= 1
    half = load_checkpoint(ModelConfig(path=str(tiny_path), dtype="bfloat16"), torch.device("cpu"))
    Decoder(half, "full").warm_up(latents)
    assert compilations() == 2
    assert len(list(tmp_path.glob("parallel-sdxl/*.bin"))) == 2


@torch.inference_mode()
def test_a_decoder_compiles_for_the_size_it_was_warmed_up_for(fresh: Checkpoint, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    decoder = Decoder(fresh, "full")
    decoder.warm_up(latents)
    assert compilations() == 1
    fail_where_nothing_fits(monkeypatch)
    ours, theirs = decoder.decode(latents).wait(), Decoder(checkpoint, "none").decode(latents).wait()
    assert abs(ours.astype(int) - theirs.astype(int)).max() <= 1


@torch.inference_mode()
def test_latents_of_any_layout_meet_the_compiled_decoders(fresh: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler's latents may be laid out like the UNet's output, the first ones are not."""
    assert fresh.preview_vae is not None
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    decoders = (Decoder(fresh, "full"), PreviewDecoder(fresh, fresh.preview_vae, 64, "full"))
    for decoder in decoders:
        decoder.warm_up(latents)
    fail_where_nothing_fits(monkeypatch)
    for decoder in decoders:
        straight = decoder.decode(latents).wait()
        assert (decoder.decode(latents.contiguous(memory_format=torch.channels_last)).wait() == straight).all()
