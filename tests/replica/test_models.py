"""Every checkpoint in docs/models.md gives what diffusers' own pipeline gives, or is refused by its name."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.messages import Slot
from serve_app.replica import sources
from serve_app.replica.checkpoint import load_checkpoint
from tests.conftest import MakeEngine, make_slot
from tests.replica import test_pictures_equal_diffusers as pictures
from tests.replica.mini_sdxl import SERVED, Bench
from tests.replica.other_models import REFUSED
from tests.replica.test_equals_diffusers import Latents, assert_same, latents

__all__ = ["latents"]

CPU = torch.device("cpu")
TABLE = Path(__file__).parents[2] / "docs" / "models.md"
INPAINTING = ("Inpainting (9 channels), folder", "Inpainting (9 channels), single file")


@pytest.fixture
def bench(pipe: StableDiffusionXLPipeline, folder: Path, tmp_path: Path) -> Bench:
    return Bench(pipe, folder, tmp_path)


def theirs(pipe: StableDiffusionXLPipeline, slot: Slot) -> tuple[torch.Tensor, np.ndarray]:
    """Return the final latents and the pixels of diffusers' own pipeline."""
    final: list[torch.Tensor] = []

    def keep(_: Any, __: int, ___: Any, of_step: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        final.append(of_step["latents"])
        return of_step

    recipe = slot.recipe
    images = pipe(
        prompt=recipe.prompt,
        negative_prompt=recipe.negative_prompt or None,
        width=recipe.width,
        height=recipe.height,
        num_inference_steps=recipe.num_inference_steps,
        guidance_scale=recipe.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(slot.seed),
        output_type="np",
        callback_on_step_end=keep,
    ).images
    return final[-1], images[0]


@pytest.mark.parametrize("name", SERVED)
def test_it_gives_what_diffusers_gives(
    name: str,
    bench: Bench,
    configs: Path,
    make_engine: MakeEngine,
    latents: Latents,
    lookups: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "sdxl_path", lambda: configs)
    given = SERVED[name](bench)
    checkpoint = load_checkpoint(ModelConfig(path=str(given.path), **given.settings), CPU)
    slot = make_slot(num_inference_steps=2, guidance_scale=4.0, scheduler=checkpoint.scheduler, keep_pixels=True)
    (ours,) = make_engine(checkpoint=checkpoint).generate(slot)
    expected, image = theirs(given.stock, slot)
    assert_same(latents.seen[0], expected)
    assert np.abs(ours.pixels - image * 255).max() <= 1
    assert lookups == []


@pytest.mark.parametrize("name", INPAINTING)
def test_a_part_of_a_picture_is_what_diffusers_gives(
    name: str, bench: Bench, configs: Path, make_engine: MakeEngine, latents: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "sdxl_path", lambda: configs)
    pipe = bench.with_unet(in_channels=9)
    path = bench.in_file(pipe) if name.endswith("file") else bench.in_folder(pipe)
    slot = pictures.a_slot(1, "part, nine channels", "euler", 0.6, 4)
    make_engine(checkpoint=load_checkpoint(ModelConfig(path=str(path)), CPU)).generate(slot)
    stock = StableDiffusionXLInpaintPipeline(**pipe.components, add_watermarker=False)
    stock.set_progress_bar_config(disable=True)
    assert_same(latents.seen[0], pictures.theirs(stock, slot, mask=pictures.a_mask()))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_served_is_called_what_it_is(name: str, tmp_path: Path, lookups: list[object]) -> None:
    write, words = REFUSED[name]
    path = write(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(ModelConfig(path=str(path)), CPU)
    sentence = str(refused.value)
    assert sentence.startswith(f"model.path: {path} {words}")
    assert "\n" not in sentence
    assert lookups == []


@pytest.mark.parametrize(("heading", "tested"), [("Served", (*SERVED, *INPAINTING)), ("Refused", (*REFUSED,))])
def test_the_table_lists_what_is_tested(heading: str, tested: Sequence[str]) -> None:
    _, section = re.split(rf"^## {heading}$", TABLE.read_text(), flags=re.MULTILINE)
    rows = re.findall(r"^\| (.+?) \|", section.split("\n## ")[0], re.MULTILINE)
    assert tuple(rows[2:]) == tested, "the first two are the head"
