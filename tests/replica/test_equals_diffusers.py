"""The engine's guarantee: every slot has the same latents as diffusers' own pipeline run alone."""

import itertools
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SASolverScheduler,
    SchedulerMixin,
    StableDiffusionXLPipeline,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from serve_app.config import ModelConfig
from serve_app.messages import Slot
from serve_app.recipe import Recipe, SchedulerName
from serve_app.replica.checkpoint import load_checkpoint
from serve_app.replica.decode import Decoder
from serve_app.replica.model_runner import Running
from serve_app.replica.submission import SlotJob
from serve_app.samplers import SAMPLERS
from tests.conftest import BETAS, ZERO_SNR, MakeEngine, WithScheduler, make_slot, pipeline

LEADING, TRAILING = {**BETAS, "timestep_spacing": "leading"}, {**BETAS, "timestep_spacing": "trailing"}
V: dict[str, Any] = {"prediction_type": "v_prediction"}


class Kind(NamedTuple):
    """A checkpoint, as its scheduler tells it apart; numbers of steps, settings, and schedulers that are refused."""

    own: SchedulerMixin
    steps: tuple[int, ...]
    settings: Mapping[str, Any] = {}
    refused: Set[SchedulerName] = frozenset()


KINDS: Mapping[str, Kind] = {
    "turbo": Kind(EulerAncestralDiscreteScheduler(**TRAILING), (1, 4)),
    "v": Kind(EulerDiscreteScheduler(**LEADING, **V), (1, 4)),
    # From 21 steps on, Karras' first two timesteps are the same. One step is left out: Euler's goes from 4096 to 1,
    # and amplifies the last bit of the UNet.
    "zero-snr": Kind(EulerDiscreteScheduler(**LEADING, **ZERO_SNR), (4, 25, 30, 50)),
    "zero-snr-trailing": Kind(DDIMScheduler(**TRAILING, **ZERO_SNR), (4, 21)),
    "epsilon-zero-snr": Kind(EulerDiscreteScheduler(**LEADING, rescale_betas_zero_snr=True), (4,), {}, {"ddim"}),
    "one-step": Kind(EulerDiscreteScheduler(**TRAILING, prediction_type="sample"), (1, 4), {}, {"euler_a"}),
    "karras": Kind(DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True, timestep_spacing="linspace"), (1, 4)),
    "set-to-trailing": Kind(EulerDiscreteScheduler(**LEADING), (1, 4), {"timestep_spacing": "trailing"}),
    "set-to-zero-snr": Kind(UniPCMultistepScheduler(**BETAS), (4,), ZERO_SNR),
}

MULTISTEP, SINGLESTEP = DPMSolverMultistepScheduler.from_config, DPMSolverSinglestepScheduler.from_config
NOISY = {"algorithm_type": "sde-dpmsolver++"}
# Written out independently of the service's own table. Those of other models are in test_models.py, lms in
# test_quick_schedulers.py.
STOCK: Mapping[SchedulerName, Callable[..., Any]] = {
    "euler": EulerDiscreteScheduler.from_config,
    "euler_a": EulerAncestralDiscreteScheduler.from_config,
    "dpmpp_2m": partial(MULTISTEP, use_karras_sigmas=False),
    "dpmpp_2m_karras": partial(MULTISTEP, use_karras_sigmas=True),
    "ddim": partial(DDIMScheduler.from_config, clip_sample=False),
    "unipc": UniPCMultistepScheduler.from_config,
}
MORE: Mapping[SchedulerName, Callable[..., Any]] = {
    "heun": HeunDiscreteScheduler.from_config,
    "dpm2": KDPM2DiscreteScheduler.from_config,
    "dpm2_a": KDPM2AncestralDiscreteScheduler.from_config,
    "dpmpp_2m_sde": partial(MULTISTEP, **NOISY),
    "dpmpp_3m_sde": partial(MULTISTEP, **NOISY, solver_order=3),
    "dpmpp_2s": partial(SINGLESTEP, lower_order_final=True),
    "dpmpp_sde": partial(SINGLESTEP, **NOISY, lower_order_final=True),
    "deis": partial(DEISMultistepScheduler.from_config, algorithm_type="deis"),
    "pndm": partial(PNDMScheduler.from_config, skip_prk_steps=True),
    "sa_solver": partial(SASolverScheduler.from_config, algorithm_type="data_prediction"),
    "ddpm": partial(DDPMScheduler.from_config, clip_sample=False),
    "lcm": partial(LCMScheduler.from_config, clip_sample=False),
    "tcd": partial(TCDScheduler.from_config, clip_sample=False),
}
COMBINATIONS: list[tuple[SchedulerName, tuple[float, tuple[int, int]], int]] = [
    *itertools.product(STOCK, ((0.0, (64, 64)), (5.0, (128, 72))), (3, 20)),
    *itertools.product(MORE, ((5.0, (64, 64)),), (4,)),
]


def a_slot(index: int, scheduler: SchedulerName, canvas: tuple[float, tuple[int, int]], steps: int) -> Slot:
    guidance, size = canvas
    return make_slot(
        index=index,
        seed=1000 + index,
        prompt=f"picture {index % 3}",
        negative_prompt="dull" if index % 2 else "",
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        guidance_rescale=0.7 if index // 4 % 2 else 0.0,
        scheduler=scheduler,
    )


SLOTS = [a_slot(i, *combination) for i, combination in enumerate(COMBINATIONS)]


def stock_latents(pipe: StableDiffusionXLPipeline, slot: Slot, **further: object) -> torch.Tensor:
    own = pipe.scheduler
    try:
        pipe.scheduler = {**STOCK, **MORE}[slot.recipe.scheduler or "euler"](own.config)
        latents: torch.Tensor = pipe(
            prompt=slot.recipe.prompt,
            **{"negative_prompt": slot.recipe.negative_prompt or None, **further},
            width=slot.recipe.width,
            height=slot.recipe.height,
            num_inference_steps=slot.recipe.num_inference_steps,
            guidance_scale=slot.recipe.guidance_scale,
            guidance_rescale=slot.recipe.guidance_rescale,
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


@pytest.fixture(scope="module")
def expected(stock: StableDiffusionXLPipeline) -> Callable[[Slot], torch.Tensor]:
    return cache(lambda slot: stock_latents(stock, slot))


def difference(ours: torch.Tensor, stock: torch.Tensor) -> float:
    assert ours.dtype == torch.float32
    return float((ours - stock).norm() / stock.norm())


def assert_same(ours: torch.Tensor, stock: torch.Tensor) -> None:
    assert difference(ours, stock) <= 1e-5, f"relative difference {difference(ours, stock):.2e}"


@pytest.mark.parametrize(
    "slot",
    SLOTS,
    ids=lambda s: (
        f"{s.recipe.scheduler}-{s.recipe.guidance_scale:g}-{s.recipe.width}x{s.recipe.height}-{s.recipe.num_inference_steps}"
    ),
)
def test_alone(slot: Slot, expected: Callable[[Slot], torch.Tensor], make_engine: MakeEngine, latents: Latents) -> None:
    make_engine(max_batch_size=1).generate(slot)
    assert_same(latents.seen[0], expected(slot))


FURTHER: tuple[dict[str, Any], ...] = (
    {"prompt_2": "a green pear"},
    {"negative_prompt": "dull", "negative_prompt_2": "grey"},
    {"negative_prompt": "dull", "prompt_2": ""},
    {"original_size": (32, 48), "crops_coords_top_left": (8, 16), "target_size": (96, 72)},
    {"original_size": (32, 48)},
    {"crops_coords_top_left": (8, 16)},
    {"negative_original_size": (32, 48), "negative_target_size": (96, 72), "negative_crops_coords_top_left": (4, 2)},
    {"negative_original_size": (32, 48), "negative_target_size": (96, 72), "crops_coords_top_left": (8, 16)},
)


@pytest.mark.parametrize("further", FURTHER, ids=lambda further: "-".join(further))
def test_further_inputs_as_the_stock_pipeline_takes_them(
    further: dict[str, Any], stock: StableDiffusionXLPipeline, make_engine: MakeEngine, latents: Latents
) -> None:
    slot = make_slot(num_inference_steps=2, **further)
    make_engine(max_batch_size=1).generate(slot)
    assert_same(latents.seen[0], stock_latents(stock, slot, **further))


def test_a_long_prompt_as_its_embeddings_in_the_stock_pipeline(
    stock: StableDiffusionXLPipeline, make_engine: MakeEngine, latents: Latents
) -> None:
    slot = make_slot(prompt="a" * 75 + " " + "b" * 9)
    make_engine(max_batch_size=1).generate(slot)
    parts = [stock.encode_prompt(part) for part in ("a" * 75, "b" * 9)]
    prompt, negative = (torch.cat([part[row] for part in parts], dim=1) for row in (0, 1))
    expected = stock(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        pooled_prompt_embeds=parts[0][2],
        negative_pooled_prompt_embeds=parts[0][3],
        width=64,
        height=64,
        num_inference_steps=4,
        generator=torch.Generator("cpu").manual_seed(slot.seed),
        output_type="latent",
    ).images
    assert_same(latents.seen[0], expected)


LONG = "a" * 75 + " " + "b" * 9
SWITCHES: tuple[tuple[SchedulerName, dict[str, Any], dict[str, Any]], ...] = (
    ("euler", {"prompt": "a green pear", "prompt_2": "a sky"}, {}),
    ("euler_a", {"prompt": "a green pear", "negative_prompt": "dull", "guidance_scale": 3.0}, {}),
    ("dpmpp_2m", {"prompt": LONG}, {"negative_prompt": "dull"}),
    ("dpmpp_sde", {"guidance_scale": 1.0}, {}),
    ("heun", {"prompt": "a green pear"}, {"guidance_scale": 1.0}),
)
"""Schedulers, the settings of the first two of four steps, and those of the others."""


@pytest.mark.parametrize(("scheduler", "first", "then"), SWITCHES, ids=[switch[0] for switch in SWITCHES])
def test_a_branch_as_the_stock_pipeline_whose_inputs_are_changed_between_two_steps(
    scheduler: SchedulerName,
    first: dict[str, Any],
    then: dict[str, Any],
    stock: StableDiffusionXLPipeline,
    make_engine: MakeEngine,
    latents: Latents,
) -> None:
    slot = make_slot(scheduler=scheduler, before=[{"until_step": 2, **first}], **then)
    make_engine(max_batch_size=1).generate(slot)
    assert_same(latents.seen[0], switched(stock, slot))


def switched(pipe: StableDiffusionXLPipeline, slot: Slot) -> torch.Tensor:
    """Return the stock pipeline's latents, with a callback that gives it other inputs for later steps."""
    begun, ended = slot.recipe.phases
    calls = slot.recipe.before[0].until_step * SAMPLERS[slot.recipe.scheduler or "euler"].order

    def switch(pipe: Any, call: int, _: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        if call + 1 != calls:
            return {}
        pipe._guidance_scale = ended.guidance_scale
        prompt, negative, pooled, negative_pooled = encoded(pipe, ended)
        if ended.guided:
            prompt, pooled = torch.cat([negative, prompt]), torch.cat([negative_pooled, pooled])
        ids = inputs["add_time_ids"][:1].expand(len(prompt), -1)
        return {"prompt_embeds": prompt, "add_text_embeds": pooled, "add_time_ids": ids}

    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    own = pipe.scheduler
    try:
        pipe.scheduler = {**STOCK, **MORE}[slot.recipe.scheduler or "euler"](own.config)
        latents: torch.Tensor = pipe(
            **dict(zip(names, encoded(pipe, begun), strict=True)),
            width=64,
            height=64,
            num_inference_steps=slot.recipe.num_inference_steps,
            guidance_scale=begun.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(slot.seed),
            callback_on_step_end=switch,
            callback_on_step_end_tensor_inputs=["prompt_embeds", "add_text_embeds", "add_time_ids"],
            output_type="latent",
        ).images
    finally:
        pipe.scheduler = own
    return latents


def encoded(pipe: StableDiffusionXLPipeline, recipe: Recipe) -> Sequence[torch.Tensor]:
    """Return a recipe's prompts as the stock pipeline takes them, long ones in parts."""
    prompt, *more = recipe.prompt.split() if recipe.prompt == LONG else [recipe.prompt]
    negative, filled = (recipe.negative_prompt, "") if recipe.negative_prompt else (None, None)
    parts = [
        pipe.encode_prompt(prompt, prompt_2=recipe.prompt_2, negative_prompt=negative),
        *(pipe.encode_prompt(part, negative_prompt=filled) for part in more),
    ]
    joined = (torch.cat([part[row] for part in parts], dim=1) for row in (0, 1))
    return *joined, parts[0][2], parts[0][3]


def test_in_a_mixed_batch(
    expected: Callable[[Slot], torch.Tensor], make_engine: MakeEngine, latents: Latents, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = make_engine(max_batch_size=8, images_per_call=8)
    order: list[int] = []
    decode = running.engine._decode

    def recording(job: SlotJob, running: Running) -> None:
        order.append(job.payload.slot.index)
        decode(job, running)

    monkeypatch.setattr(running.engine, "_decode", recording)
    running.generate(*SLOTS)
    assert max(running.watch.batches) > 2, "slots must have shared UNet calls"
    assert sorted(order) == list(range(len(SLOTS)))
    for index, final in zip(order, latents.seen, strict=True):
        assert_same(final, expected(SLOTS[index]))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_scheduler_on_every_kind_of_checkpoint(
    kind: Kind,
    with_scheduler: WithScheduler,
    make_engine: MakeEngine,
    latents: Latents,
) -> None:
    path = with_scheduler(kind.own)
    checkpoint = load_checkpoint(ModelConfig(path=str(path), **kind.settings), torch.device("cpu"))
    assert {*STOCK} - {*checkpoint.schedulers} == kind.refused
    stock = pipeline(path)
    stock.scheduler = type(kind.own).from_pretrained(path / "scheduler", **kind.settings)

    served = [name for name in STOCK if name in checkpoint.schedulers]  # test_samplers.py has the others
    slots = [a_slot(0, name, (0.0, (64, 64)), steps) for name in served for steps in kind.steps]
    make_engine(checkpoint=checkpoint, max_batch_size=1).generate(*slots)
    off = [difference(final, stock_latents(stock, slot)) for slot, final in zip(slots, latents.seen, strict=True)]
    wrong = [
        (s.recipe.scheduler, s.recipe.num_inference_steps, far)
        for s, far in zip(slots, off, strict=True)
        if not far <= 1e-5
    ]
    assert wrong == []
