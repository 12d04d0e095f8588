"""The engine's promise: the latents of every slot are those of diffusers' own pipeline run alone."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
)

from serve_app.messages import Slot
from serve_app.replica.decode import Decoder
from serve_app.schemas import SchedulerName
from tests.conftest import MakeEngine, make_slot

# Written out apart from the service's own table.
STOCK: Mapping[SchedulerName, Any] = {
    "euler": lambda config: EulerDiscreteScheduler.from_config(config),
    "euler_a": lambda config: EulerAncestralDiscreteScheduler.from_config(config),
    "dpmpp_2m": lambda config: DPMSolverMultistepScheduler.from_config(config),
    "dpmpp_2m_karras": lambda config: DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True),
    "ddim": lambda config: DDIMScheduler.from_config(config, clip_sample=False),
    "unipc": lambda config: UniPCMultistepScheduler.from_config(config),
}
SIZES = ((64, 64), (128, 72))
COMBINATIONS = list(itertools.product(STOCK, (0.0, 5.0), SIZES, (3, 20)))


def a_slot(index: int, scheduler: SchedulerName, guidance: float, size: tuple[int, int], steps: int) -> Slot:
    return make_slot(
        index=index,
        seed=1000 + index,
        prompt=f"picture {index % 3}",
        negative_prompt="dull" if index % 2 else "",
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
    )


SLOTS = [a_slot(i, *combination) for i, combination in enumerate(COMBINATIONS)]


def stock_latents(pipe: StableDiffusionXLPipeline, slot: Slot) -> torch.Tensor:
    own = pipe.scheduler
    try:
        pipe.scheduler = STOCK[slot.scheduler](own.config)
        latents: torch.Tensor = pipe(
            prompt=slot.prompt,
            negative_prompt=slot.negative_prompt or None,
            width=slot.width,
            height=slot.height,
            num_inference_steps=slot.num_inference_steps,
            guidance_scale=slot.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(slot.seed),
            output_type="latent",
        ).images
    finally:
        pipe.scheduler = own
    return latents


@dataclass
class Latents:
    """Final latents as the engine hands them to the decoder, in that order."""

    seen: list[torch.Tensor]


@pytest.fixture
def latents(monkeypatch: pytest.MonkeyPatch) -> Latents:
    record = Latents([])

    decode = Decoder.decode

    def recording(decoder: Decoder, final: torch.Tensor) -> Any:
        record.seen.append(final.clone())
        return decode(decoder, final)

    monkeypatch.setattr(Decoder, "decode", recording)
    return record


def assert_same(ours: torch.Tensor, stock: torch.Tensor) -> None:
    assert ours.dtype == torch.float32
    difference = (ours - stock).norm() / stock.norm()
    assert difference <= 1e-5, f"relative difference {difference:.2e}"


@pytest.mark.parametrize("slot", SLOTS, ids=lambda s: f"{s.scheduler}-{s.guidance_scale:g}-{s.width}x{s.height}-{s.num_inference_steps}")
def test_alone(slot: Slot, stock: StableDiffusionXLPipeline, make_engine: MakeEngine, latents: Latents) -> None:
    make_engine(max_batch_size=1).paint(slot)
    assert_same(latents.seen[0], stock_latents(stock, slot))


def test_in_a_mixed_batch(stock: StableDiffusionXLPipeline, make_engine: MakeEngine, latents: Latents, monkeypatch: pytest.MonkeyPatch) -> None:
    running = make_engine(max_batch_size=8, images_per_call=8)
    order: list[int] = []
    finish = running.engine._finish

    def recording(active: Any) -> None:
        order.append(active.job.slot.index)
        finish(active)

    monkeypatch.setattr(running.engine, "_finish", recording)
    running.paint(*SLOTS)
    assert max(running.watch.batches) > 2, "slots must have shared UNet calls"
    assert sorted(order) == list(range(len(SLOTS)))
    for index, final in zip(order, latents.seen, strict=True):
        assert_same(final, stock_latents(stock, SLOTS[index]))
