"""What needs a GPU: CUDA graphs, streams, and that no step waits for the device.

Collected only if there is a GPU: `pytest tests/gpu`.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code
from torch.nn import functional as F  # noqa: N812, the usual name

from serve_app.config import Compile, EngineConfig, ModelConfig, PreviewConfig
from serve_app.messages import Generated, Preview, Slot
from serve_app.recipe import SchedulerName
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.compilation import Compiled, Eager
from serve_app.replica.cuda_graphs import with_cuda_graphs
from serve_app.replica.decode import Decoder
from serve_app.replica.denoise import Denoiser
from serve_app.replica.engine import Engine
from serve_app.replica.gpu_clock import GpuClock
from serve_app.replica.lora.packing import Packer
from serve_app.replica.norms import ChannelsLastGroupNorm
from serve_app.replica.previews import PreviewDecoder
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder, TextEncoders
from serve_app.replica.quantize import to_fp8
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import eager, make_forward
from tests.conftest import Collector, Watch, make_slot
from tests.replica.layer import fail_where_nothing_fits
from tests.replica.test_compilation import weighted
from tests.replica.test_norms import group_norms
from tests.replica.test_placing import assert_placed

GPU = torch.device("cuda", 0)

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),  # torch warns that it is a prototype
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # from the compiler's own imports
]


@pytest.fixture
def model(tiny_path: Path) -> ModelConfig:
    return ModelConfig(path=str(tiny_path), dtype="bfloat16")


@pytest.fixture
def checkpoint(model: ModelConfig) -> Checkpoint:
    return load_checkpoint(model, GPU)


class Begin:
    """Makes trajectories as the engine does."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.reader, self.encoder = PromptReader(checkpoint.pipe), PromptEncoder(checkpoint.pipe, checkpoint.device, 8)
        self._checkpoint = checkpoint

    def __call__(self, **changes: object) -> Trajectory:
        slot = make_slot(**changes)
        return Trajectory.of(
            slot.recipe, slot.seed, self._checkpoint, self.encoder.conditions(self.reader.read(slot.recipe))
        )


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Raise an error if anything waits for the device."""
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def test_a_cuda_graph_equals_the_unet_warmed_up_or_not(checkpoint: Checkpoint) -> None:
    begin = Begin(checkpoint)
    plain, replayed = (
        Denoiser(checkpoint, eager(checkpoint.unet)),
        Denoiser(checkpoint, make_forward(checkpoint.unet, "none")),
    )
    replayed.warm_up([begin(), begin()])
    groups: list[list[dict[str, object]]] = [
        [{}],
        [{"seed": 1}],
        [{"seed": 2}, {"seed": 3}],
        [{"width": 128}],
        [{"guidance_scale": 0}],
    ]
    for group in groups:
        for _ in range(3):
            trajectories = [begin(**changes) for changes in group]
            expected = [prediction.clone() for prediction in plain.predict(trajectories)]
            for ours, theirs in zip(replayed.predict(trajectories), expected, strict=True):
                assert torch.equal(ours, theirs)


@torch.inference_mode()
def test_a_cuda_graph_runs_only_for_its_own_shapes() -> None:
    forward, sample = with_cuda_graphs(Eager(weighted, nn.Identity()), GPU), torch.ones(2, 8, device=GPU)
    for _ in range(3):
        for length in (77, 154):
            context = torch.full((2, length), float(length), device=GPU)
            torch.testing.assert_close(forward(sample, context), sample * length)


def test_the_tensors_of_an_adapter_reach_the_device_as_they_are() -> None:
    large = torch.randn(2**23 + 1)  # more than is sent at once
    tensors = [torch.randn(size, 5).half().T for size in range(1, 2000)] + [large] + [torch.randn(3, 3)]
    packed = Packer(GPU).pack(tensors)
    assert all(torch.equal(before, after.cpu()) for before, after in zip(tensors, packed, strict=True))


@torch.inference_mode()
def test_captured_text_encoders_equal_eager_ones(checkpoint: Checkpoint) -> None:
    encoder = PromptEncoder(checkpoint.pipe, checkpoint.device, 8)
    reader = PromptReader(checkpoint.pipe)
    read = [reader.read(make_slot(prompt=prompt).recipe) for prompt in ("a red apple", "a plum")]
    encoder.warm_up(read[0], [checkpoint.unet])
    kept = [encoder.encode(prompts.rows[-1]) for prompts in read]
    for embedding, prompts in zip(kept, read, strict=True):
        expected = TextEncoders(checkpoint.pipe, GPU)(*encoder._ids(prompts.rows[-1].chunks[0]))[1]
        assert torch.equal(embedding.pooled, expected), "the next embedding must not overwrite it"


@torch.inference_mode()
@pytest.mark.parametrize("scheduler", ["euler", "dpmpp_2m", "dpmpp_2m_karras", "ddim"])
def test_nothing_waits_for_the_device_between_a_slot_and_its_picture(
    checkpoint: Checkpoint, scheduler: SchedulerName
) -> None:
    begin = Begin(checkpoint)
    begin.encoder.warm_up(begin.reader.read(make_slot().recipe), [checkpoint.unet])
    denoiser, decoder = Denoiser(checkpoint, make_forward(checkpoint.unet, "none")), Decoder(checkpoint, "none")
    denoiser.warm_up([begin(scheduler=scheduler)])
    decoder.warm_up(begin().latents)
    assert checkpoint.preview_vae is not None
    previews = PreviewDecoder(checkpoint, checkpoint.preview_vae, 64, "none")
    previews.decode(begin().latents).wait()
    with nothing_waits():
        trajectory = begin(scheduler=scheduler, prompt="never seen")
        while not trajectory.done:
            trajectory.advance(denoiser.predict([trajectory])[0])
            previews.decode(trajectory.clean)
        pending = decoder.decode(trajectory.latents)
    assert pending.wait().shape == (64, 64, 3)


@torch.inference_mode()
def test_capturing_an_unknown_shape_does_not_wait_either(checkpoint: Checkpoint) -> None:
    begin = Begin(checkpoint)
    denoiser = Denoiser(checkpoint, make_forward(checkpoint.unet, "none"))
    denoiser.warm_up([begin()])
    denoiser.predict([begin(width=128)])
    with nothing_waits():
        denoiser.predict([begin(width=128)])


@torch.inference_mode()
def test_previews_on_their_own_stream_are_those_of_their_latents(checkpoint: Checkpoint) -> None:
    assert checkpoint.preview_vae is not None
    decoder = PreviewDecoder(checkpoint, checkpoint.preview_vae, 64, "none")
    latents = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    pending = []
    for latent in latents:
        clean = latent.to(GPU) + 0  # just created on the denoising stream, and freed at once
        pending.append(decoder.decode(clean))
        del clean
        torch.randn(1, 4, 8, 8, device=GPU)
    for latent, own in zip(latents, pending, strict=True):
        assert np.array_equal(own.wait(), decoder.decode(latent.to(GPU)).wait())


def test_group_norms_are_those_for_this_layout(checkpoint: Checkpoint) -> None:
    assert group_norms(checkpoint.unet) == group_norms(checkpoint.vae) == {ChannelsLastGroupNorm}


class _Norm(nn.LayerNorm):
    config: ClassVar[dict[str, object]] = {}


def _norm(norm: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = norm(rows)
    return result


@torch.inference_mode()
def test_a_norm_as_wide_as_sdxls_reads_a_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    forward, rows = Compiled(_norm, _Norm(1280, device=GPU)), torch.randn(2, 100, 1280, device=GPU)
    _, codes = run_and_get_code(forward.warm_up, rows)
    assert "persistent_reduction" in codes[0]
    torch.testing.assert_close(forward(rows), F.layer_norm(rows, (1280,)))


@torch.inference_mode()
def test_a_kernel_that_is_launched_early_waits_before_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint
) -> None:
    monkeypatch.setitem(os.environ, "TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    decoder = Decoder(checkpoint, "full")
    _, codes = run_and_get_code(decoder.warm_up, torch.randn(1, 4, 8, 8, device=GPU))
    kernels = [part.partition(", device_str=")[0] for code in codes for part in code.split("async_compile.triton(")[1:]]
    assert kernels
    assert {re.findall(r"gdc_wait|tl[.]load|tl[.]store", kernel)[0] for kernel in kernels} == {"gdc_wait"}


@contextmanager
def engine(checkpoint: Checkpoint, slots: Sequence[Slot], **config: object) -> Iterator[Engine]:
    running = Engine(checkpoint, EngineConfig(**config), PreviewConfig(min_interval_s=0), Watch())
    try:
        running.start(slots).result(timeout=600)
        yield running
    finally:
        running.stop()


def generated(running: Engine, *slots: Slot) -> list[Generated]:
    collectors = [Collector() for _ in slots]
    for slot, collector in zip(slots, collectors, strict=True):
        running.submit(slot, collector.post)
    results = [collector.result() for collector in collectors]
    for slot, collector in zip(slots, collectors, strict=True):
        assert bool(slot.preview_steps) == any(isinstance(event, Preview) for event in collector.events)
    return results


@pytest.mark.parametrize("mode", ["none", "regional", "full"])
def test_an_image_has_the_same_bits_alone_and_beside_others(checkpoint: Checkpoint, mode: str) -> None:
    slots = [make_slot(seed=seed, prompt=f"apple {seed}", keep_pixels=True, num_inference_steps=8) for seed in range(4)]
    others = [
        make_slot(seed=9, width=128, num_inference_steps=20, preview_steps=frozenset({1})),
        make_slot(seed=8, guidance_scale=0),
        make_slot(seed=7, scheduler="unipc"),
    ]
    with engine(checkpoint, [make_slot()], compile=mode, max_batch_size=4) as running:
        alone = [generated(running, slot)[0] for slot in slots]
        for _ in range(3):
            crowd = generated(running, *slots, *others)
            for one, other in zip(alone, crowd, strict=False):
                assert np.array_equal(np.asarray(one.pixels), np.asarray(other.pixels))


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["regional", "full"])
def test_a_cuda_graph_captures_the_compiled_model(
    checkpoint: Checkpoint, mode: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a guard did not match the inputs, the graph would silently be captured from the eager UNet."""
    begin = Begin(checkpoint)
    fail_where_nothing_fits(monkeypatch)
    denoiser = Denoiser(checkpoint, make_forward(checkpoint.unet, mode))
    for images in (1, 2, 4):
        denoiser.warm_up([begin() for _ in range(images)])


def test_8_bit_floats_generate_nearly_the_same(model: ModelConfig) -> None:
    plain, small = load_checkpoint(model, GPU), load_checkpoint(model, GPU)
    assert to_fp8(small, model, fewest_features=16) > 0
    slot = make_slot(keep_pixels=True)
    with engine(plain, [slot]) as running:
        (theirs,) = generated(running, slot)
    with engine(small, [slot]) as running:
        (ours,) = generated(running, slot)
    assert np.abs(np.asarray(ours.pixels).astype(int) - np.asarray(theirs.pixels).astype(int)).mean() < 8


@torch.inference_mode()
def test_the_clock_of_the_gpu_is_read_without_waiting_and_says_how_long_work_took() -> None:
    clock, square = GpuClock(GPU), torch.randn(4096, 4096, device=GPU)
    times: dict[int, list[float]] = {10: [], 40: []}
    for _ in range(2):  # the first loads kernels
        for products, told in times.items():
            told.clear()
            with nothing_waits():
                with clock.timing(told.append):
                    for _ in range(products):
                        square @ square
                clock.settle()
            torch.cuda.synchronize()
            clock.settle()
    (few,), (many,) = times.values()
    assert 2 < many / few < 8


def test_an_image_says_what_it_cost_by_the_clock_of_the_gpu(checkpoint: Checkpoint) -> None:
    slot = make_slot(preview_steps=frozenset({1}))
    with engine(checkpoint, [slot]) as running:
        (picture,) = generated(running, slot)
    assert 0 < picture.work.gpu < 2 * (picture.work.encode_prompt + picture.work.denoise + picture.work.decode)


@pytest.mark.parametrize("at_once", [1, 600, 2**20])
def test_a_placed_model_has_the_bits_types_and_layouts_that_torch_gives_it(at_once: int) -> None:
    assert_placed(GPU, at_once)
