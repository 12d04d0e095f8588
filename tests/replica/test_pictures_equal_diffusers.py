"""A slot that begins with a picture has the latents of diffusers' own pipelines, and the same bits in a crowd."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image as Pillow

from serve_app.canvas import canvas_of
from serve_app.config import ModelConfig, PreviewConfig
from serve_app.errors import SlotFailed
from serve_app.messages import Preview, Slot
from serve_app.recipe import SchedulerName
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.encode import Encoder, can_encode
from serve_app.replica.engine import Engine
from serve_app.replica.model_runner import Running
from serve_app.replica.previews import PreviewDecoder
from serve_app.replica.submission import SlotJob
from tests.conftest import MakeEngine, make_slot
from tests.replica.test_equals_diffusers import MORE, STOCK, assert_same, difference

Kind = Literal["picture", "part", "part, nine channels"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WIDTH, HEIGHT = 96, 64
STRENGTHS = ((0.6, 4), (0.99, 3), (1.0, 2))
"""With numbers of steps, of which 2 are done."""


MORE_CALLS: tuple[SchedulerName, ...] = ("heun", "dpm2_a")


def a_picture(width: int = WIDTH, height: int = HEIGHT) -> Pillow.Image:
    return Pillow.fromarray(np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8))


def a_mask(width: int = WIDTH, height: int = HEIGHT) -> Pillow.Image:
    mask = Pillow.new("L", (width, height))
    mask.paste(255, (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    return mask


def a_slot(index: int, kind: Kind, scheduler: SchedulerName, strength: float, steps: int, **others: Any) -> Slot:
    masked = kind != "picture"
    settings = {
        "width": WIDTH,
        "height": HEIGHT,
        "num_inference_steps": steps,
        "guidance_scale": 5.0 if index % 2 else 0.0,
        "scheduler": scheduler,
        "strength": strength,
        "init_image": "sha256:0",
        "mask_image": "sha256:1" if masked else None,
        **others,
    }
    recipe = make_slot(**settings).recipe
    canvas = canvas_of(a_picture(), a_mask() if masked else None, recipe)
    return make_slot(index=index, seed=index, canvas=canvas, keep_pixels=True, **settings)


def slots(kind: Kind) -> list[Slot]:
    sampled = [(scheduler, *strength) for scheduler in STOCK for strength in STRENGTHS]
    if kind == "part":  # what is kept is put back after each call, of which these have more than steps
        sampled += [(scheduler, *STRENGTHS[0]) for scheduler in MORE_CALLS]
    return [a_slot(i, kind, *each) for i, each in enumerate(sampled)]


@pytest.fixture(scope="module")
def nine_path(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the UNet of an inpainting checkpoint."""
    folder = Path(shutil.copytree(tiny_path, tmp_path_factory.mktemp("nine") / "nine"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = {**UNet2DConditionModel.load_config(tiny_path / "unet"), "in_channels": 9}
        unet = UNet2DConditionModel.from_config(config)
    pipe = StableDiffusionXLInpaintPipeline.from_pretrained(tiny_path, unet=unet, add_watermarker=False)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def nine(nine_path: Path) -> Checkpoint:
    return load_checkpoint(ModelConfig(path=str(nine_path)), torch.device("cpu"))


@pytest.fixture(scope="module")
def pipes(tiny_path: Path, nine_path: Path) -> Mapping[Kind, Any]:
    made: dict[Kind, Any] = {
        "picture": StableDiffusionXLImg2ImgPipeline.from_pretrained(tiny_path, add_watermarker=False),
        "part": StableDiffusionXLInpaintPipeline.from_pretrained(tiny_path, add_watermarker=False),
        "part, nine channels": StableDiffusionXLInpaintPipeline.from_pretrained(nine_path, add_watermarker=False),
    }
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


def theirs(pipe: Any, slot: Slot, *, mask: Pillow.Image | None, **others: Any) -> Any:
    """What diffusers' own pipeline makes of a slot's recipe: its final latents unless told otherwise."""
    own, recipe = pipe.scheduler, slot.recipe
    masked = {} if mask is None else {"mask_image": mask, "width": recipe.width, "height": recipe.height}
    try:
        pipe.scheduler = {**STOCK, **MORE}[recipe.scheduler or "euler"](own.config)
        return pipe(
            prompt=recipe.prompt,
            image=a_picture(),
            strength=recipe.strength or 1.0,
            num_inference_steps=recipe.num_inference_steps,
            guidance_scale=recipe.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(slot.seed),
            **{"output_type": "latent", **masked, **others},
        ).images
    finally:
        pipe.scheduler = own


@pytest.fixture
def finals(monkeypatch: pytest.MonkeyPatch) -> dict[int, torch.Tensor]:
    """The final latents of slots by their index."""
    seen: dict[int, torch.Tensor] = {}
    decode = Engine._decode

    def recording(engine: Engine, job: SlotJob, running: Running) -> None:
        seen[job.payload.slot.index] = running.trajectory.latents.clone()
        decode(engine, job, running)

    monkeypatch.setattr(Engine, "_decode", recording)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_alone_and_in_a_crowd(
    kind: Kind,
    pipes: Mapping[Kind, Any],
    checkpoint: Checkpoint,
    nine: Checkpoint,
    make_engine: MakeEngine,
    finals: dict[int, torch.Tensor],
) -> None:
    served = nine if kind == "part, nine channels" else checkpoint
    pictures = slots(kind)
    make_engine(checkpoint=served, max_batch_size=1).generate(*pictures)
    alone = dict(finals)
    for slot in pictures:
        mask = None if kind == "picture" else a_mask()
        assert_same(alone[slot.index], theirs(pipes[kind], slot, mask=mask))

    plain = [make_slot(index=100 + i, seed=i, width=WIDTH, height=HEIGHT) for i in range(3)]
    crowd = make_engine(checkpoint=served, max_batch_size=8)
    crowd.generate(*plain[:1], *reversed(pictures), *plain[1:])
    for slot in pictures:
        assert torch.equal(finals[slot.index], alone[slot.index]), "the bits are those of the slot alone"


def test_all_kinds_share_calls(make_engine: MakeEngine, finals: dict[int, torch.Tensor]) -> None:
    plain = make_slot(index=2, seed=2, width=WIDTH, height=HEIGHT)
    mixed = [a_slot(0, "picture", "euler", 0.6, 4, guidance_scale=5.0), a_slot(1, "part", "ddim", 1.0, 4), plain]
    make_engine(max_batch_size=1).generate(*mixed)
    alone = dict(finals)
    crowd = make_engine(max_batch_size=3, images_per_call=3)
    crowd.generate(*mixed)
    assert max(crowd.watch.batches) == 3
    for slot in mixed:
        assert_same(finals[slot.index], alone[slot.index])


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_an_inpainting_model_generates_whole_pictures_too(
    strength: float,
    pipes: Mapping[Kind, Any],
    nine: Checkpoint,
    make_engine: MakeEngine,
    finals: dict[int, torch.Tensor],
) -> None:
    """As diffusers does with a mask of everything."""
    steps = {"num_inference_steps": 4, "scheduler": "euler_a", "width": WIDTH, "height": HEIGHT, "guidance_scale": 5.0}
    given = a_slot(0, "picture", "euler_a", strength, 4, guidance_scale=5.0)
    slot = make_slot(seed=0, **steps) if strength == 1 else given
    make_engine(checkpoint=nine).generate(slot)
    everything = Pillow.new("L", (WIDTH, HEIGHT), 255)
    expected = theirs(pipes["part, nine channels"], slot, mask=everything)
    # Of a plain grey picture the VAE's norms amplify the last bit.
    assert difference(finals[0], expected) <= 1e-3


def test_what_is_outside_the_mask_keeps_its_bits(make_engine: MakeEngine) -> None:
    engine = make_engine()
    (kept,) = engine.generate(a_slot(0, "part", "euler", 1.0, 3))
    (loose,) = engine.generate(a_slot(0, "part", "euler", 1.0, 3, keep_outside=False))
    outside = np.asarray(a_mask()) == 0
    assert np.array_equal(kept.pixels[outside], np.asarray(a_picture())[outside])
    assert np.array_equal(kept.pixels[~outside], loose.pixels[~outside])
    assert not np.array_equal(loose.pixels[outside], kept.pixels[outside]), "the VAE does not keep pixels"


@pytest.mark.parametrize("blur", [0, 3])
def test_a_region_is_generated_at_full_size_and_put_back(
    blur: int, pipes: Mapping[Kind, Any], make_engine: MakeEngine
) -> None:
    slot = a_slot(0, "part", "euler", 0.6, 4, padding_mask_crop=5, mask_blur=blur)
    (ours,) = make_engine().generate(slot)
    pipe = pipes["part"]
    mask = pipe.mask_processor.blur(a_mask(), blur) if blur else a_mask()
    (expected,) = theirs(pipe, slot, mask=mask, padding_mask_crop=5, output_type="pil")
    assert np.abs(ours.pixels.astype(int) - np.asarray(expected)).max() <= 3, "diffusers rounds twice on the way"


def test_previews_show_what_is_kept(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    cleans: list[torch.Tensor] = []
    decode = PreviewDecoder.decode

    def recording(decoder: PreviewDecoder, clean: torch.Tensor, *charging: Any) -> Any:
        cleans.append(clean.clone())
        return decode(decoder, clean, *charging)

    monkeypatch.setattr(PreviewDecoder, "decode", recording)
    running = make_engine(preview=PreviewConfig(min_interval_s=0))
    collected = running.submit(a_slot(0, "part", "euler", 1.0, 4, preview_steps=frozenset({1, 2})))
    collected.result()
    assert [event.step for event in collected.events if isinstance(event, Preview)]
    outside = np.asarray(a_mask())[::8, ::8] == 0
    first, second = cleans[0][0, :, outside], cleans[-1][0, :, outside]
    assert torch.equal(first, second), "the kept part is the picture's own from the first preview on"


def test_a_picture_is_encoded_once(
    checkpoint: Checkpoint, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Any] = []
    encode = type(checkpoint.vae).encode

    def counting(*args: Any, **options: Any) -> Any:
        encoded.append(args)
        return encode(*args, **options)

    monkeypatch.setattr(type(checkpoint.vae), "encode", counting)
    engine = make_engine(max_batch_size=4)
    engine.generate(*[a_slot(i, "picture", "euler", 0.6, 4) for i in range(4)])
    engine.generate(a_slot(5, "part", "ddim", 0.99, 3))
    assert len(encoded) == 1


@torch.inference_mode()
def test_a_vae_without_an_encoder_says_so(checkpoint: Checkpoint) -> None:
    """A preview VAE has none, and may be the only VAE."""
    decoder_alone: Any = checkpoint.preview_vae
    assert can_encode(checkpoint.vae)
    assert not can_encode(decoder_alone)
    encoder = Encoder(replace(checkpoint, vae=decoder_alone), "none")
    encoder.warm_up(HEIGHT, WIDTH)
    with pytest.raises(SlotFailed, match="has no encoder"):
        encoder.picture(a_slot(0, "picture", "euler", 0.6, 4).canvas.image)
