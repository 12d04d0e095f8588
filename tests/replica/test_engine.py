import sys
import threading
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from serve_app.config import EngineConfig, PreviewConfig
from serve_app.messages import Generated, Preview, Progress
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.denoise import Denoiser
from serve_app.replica.engine import Engine
from serve_app.replica.observer import Silent
from serve_app.replica.prompt_reader import PromptTokens
from serve_app.replica.prompts import PromptEmbedding, PromptEncoder
from tests.conftest import Collector, MakeEngine, make_slot


def pixels(generated: Generated) -> Any:
    return np.asarray(generated.pixels)


def psnr(a: Any, b: Any) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


class Gate:
    """Blocks the engine before each step, so that a test controls how far the loop goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._permits = threading.Semaphore(0)
        self._arrived = threading.Semaphore(0)
        self.groups: list[list[Any]] = []
        self.calls: list[tuple[Denoiser, list[Any]]] = []
        predict = Denoiser.predict

        def gated(denoiser: Denoiser, trajectories: Any) -> Any:
            self.groups.append(list(trajectories))
            self.calls.append((denoiser, list(trajectories)))
            self._arrived.release()
            assert self._permits.acquire(timeout=60)
            return predict(denoiser, trajectories)

        monkeypatch.setattr(Denoiser, "predict", gated)

    def wait(self) -> None:
        """Wait until the loop is blocked before its next step."""
        assert self._arrived.acquire(timeout=60)

    def step(self, steps: int = 1) -> None:
        """Let the loop take steps, and wait until it is blocked before the next one."""
        for _ in range(steps):
            self._permits.release()
            self.wait()

    def open(self) -> None:
        self._permits.release(10_000)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def test_picture_is_the_stock_pipelines(stock: StableDiffusionXLPipeline, make_engine: MakeEngine) -> None:
    (generated,) = make_engine().generate(make_slot(keep_pixels=True))
    expected = stock(
        "a red apple",
        width=64,
        height=64,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    assert np.abs(pixels(generated).astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_each_image_depends_on_its_seed_alone(make_engine: MakeEngine) -> None:
    running = make_engine(max_batch_size=4)
    slots = [make_slot(index=i, seed=100 + i, keep_pixels=True) for i in range(4)]
    together = running.generate(*slots)
    alone = [running.generate(slot)[0] for slot in slots]
    mixed = running.generate(make_slot(seed=1, scheduler="euler_a", guidance_scale=0, prompt="other"), slots[2])[1]
    assert len({p.b64_json for p in together}) == 4
    for a, b in zip(together, alone, strict=True):
        assert np.array_equal(pixels(a), pixels(b)), "by default images do not share UNet calls"
    assert np.array_equal(pixels(mixed), pixels(together[2]))


def test_any_place_in_a_call_gives_the_same_bits(make_engine: MakeEngine, gate: Gate) -> None:
    running = make_engine(max_batch_size=4, images_per_call=4)
    gate.open()
    seeds = [5, 6, 7, 8]
    forward = running.generate(*[make_slot(seed=s, keep_pixels=True) for s in seeds])
    backward = running.generate(*[make_slot(seed=s, keep_pixels=True) for s in reversed(seeds)])
    assert all(len(group) == 4 for group in gate.groups)
    for a, b in zip(forward, reversed(backward), strict=True):
        assert np.array_equal(pixels(a), pixels(b))


def test_sharing_a_call_changes_no_more_than_rounding(make_engine: MakeEngine, gate: Gate) -> None:
    slots = [make_slot(seed=seed, keep_pixels=True, num_inference_steps=20) for seed in range(4)]
    gate.open()
    alone = pixels(make_engine().generate(slots[2])[0])
    assert psnr(alone, pixels(make_engine(images_per_call=4).generate(*slots)[2])) >= 60
    assert max(map(len, gate.groups)) == 4


def test_a_slot_joins_and_leaves_between_steps(make_engine: MakeEngine, gate: Gate) -> None:
    running = make_engine(max_batch_size=4, images_per_call=4)
    long = running.submit(make_slot(num_inference_steps=6))
    gate.wait()
    short = running.submit(make_slot(num_inference_steps=2))
    gate.step()
    assert [len(group) for group in gate.groups] == [1, 2], "the new slot joins at the next step"
    gate.step(2)
    assert isinstance(short.result(), Generated)
    assert [len(group) for group in gate.groups] == [1, 2, 2, 1]
    gate.open()
    assert isinstance(long.result(), Generated)


def test_slots_beyond_the_batch_wait_in_order(make_engine: MakeEngine, gate: Gate) -> None:
    running = make_engine(max_batch_size=1)
    prompts = ["first", "second", "third"]
    collectors = running.submit_together(*[make_slot(prompt=prompt, num_inference_steps=2) for prompt in prompts])
    gate.wait()
    assert (running.engine.load().active, running.engine.load().waiting) == (1, 2)
    gate.open()
    for collector in collectors:
        collector.result()
    generated = [group[0].conditioning.context for group in gate.groups]
    models = running.engine._models
    read = [models.read(make_slot(prompt=prompt)) for prompt in prompts]
    expected = [models.prompts.encode(each.rows[-1]).context for each in read for _ in range(2)]
    assert len(generated) == 6
    assert all(a is b for a, b in zip(generated, expected, strict=True)), "in order, one after another"
    assert (running.engine.load().active, running.engine.load().waiting) == (0, 0)


def test_sizes_take_turns(make_engine: MakeEngine, gate: Gate) -> None:
    running = make_engine(max_batch_size=4, images_per_call=4)
    gate.open()
    running.generate(*[make_slot(width=width, num_inference_steps=4) for width in (64, 64, 128)])
    widths = [group[0].latents.shape[-1] for group in gate.groups]
    assert widths == [8, 16] * 4
    assert [len(group) for group in gate.groups] == [2, 1] * 4


LENGTHS = [make_slot(index=i, prompt="a" * length, keep_pixels=True) for i, length in enumerate((9, 76, 151, 80))]


def test_only_prompts_of_one_length_share_a_call(make_engine: MakeEngine, gate: Gate) -> None:
    running = make_engine(max_batch_size=4, images_per_call=4)
    gate.open()
    running.generate(*LENGTHS)
    lengths = [[trajectory.conditioning.context.shape[1] for trajectory in group] for group in gate.groups]
    assert lengths == [[77], [154, 154], [231]] * 4


def test_prompts_of_other_lengths_and_negative_prompts_change_no_bit(make_engine: MakeEngine) -> None:
    alone, crowd = make_engine(max_batch_size=1), make_engine(max_batch_size=5)
    slots = [*LENGTHS, make_slot(negative_prompt="dull", keep_pixels=True)]
    expected = [pixels(picture) for slot in slots for picture in alone.generate(slot)]
    for ours, picture in zip(crowd.generate(*slots), expected, strict=True):
        assert np.array_equal(pixels(ours), picture)


@pytest.mark.parametrize("lanes", [2, 3])
def test_images_on_several_lanes_change_no_bit(make_engine: MakeEngine, gate: Gate, lanes: int) -> None:
    """On the CPU they are still generated one after another: `tests/gpu` has real ones."""
    gate.open()
    slots = [make_slot(seed=seed, keep_pixels=True, num_inference_steps=2 + seed) for seed in range(4)]
    alone = [make_engine(max_batch_size=1).generate(slot)[0] for slot in slots]
    running = make_engine(max_batch_size=4, calls_at_once=lanes)
    for ours, one in zip(running.generate(*slots), alone, strict=True):
        assert np.array_equal(pixels(ours), pixels(one))
    assert len({denoiser for denoiser, _ in gate.calls[14:]}) == lanes


def test_only_those_without_a_negative_prompt_share_a_call_that_needs_none(make_engine: MakeEngine, gate: Gate) -> None:
    running = make_engine(max_batch_size=4, images_per_call=4)
    gate.open()
    changes: list[dict[str, object]] = [{}, {"negative_prompt": "dull"}, {"guidance_scale": 0}, {"seed": 8}]
    running.generate(*[make_slot(**each) for each in changes])
    rows = [[(t.rows, len(t.conditioning.context)) for t in group] for group in gate.groups]
    assert rows == [[(2, 1), (2, 1)], [(2, 2), (1, 1)]] * 4


def test_a_picture_says_what_is_not_read_of_its_prompt(make_engine: MakeEngine) -> None:
    running = make_engine()
    short, long = running.generate(*[make_slot(prompt="a" * 76, max_prompt_tokens=most) for most in (75, 150)])
    assert short.warnings == ("prompt is longer than the model can read; it does not see: a",)
    assert long.warnings == ()


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_a_cancelled_slot_frees_the_engine_within_one_step(
    make_engine: MakeEngine, gate: Gate, steps_before: int
) -> None:
    running = make_engine(max_batch_size=2)
    cancelled, stays = Collector(), Collector()
    job = running.engine.submit(make_slot(num_inference_steps=50), cancelled.post)
    running.engine.submit(make_slot(num_inference_steps=6), stays.post)
    gate.wait()
    gate.step(steps_before)
    running.engine.cancel(job)
    gate.step()  # the step that had already begun
    assert len(gate.groups[-1]) == 1, "the next step does not include it"
    gate.open()
    stays.result()
    assert sorted(running.watch.outcomes) == ["cancelled", "succeeded"]


def test_a_waiting_slot_is_cancelled_at_once(make_engine: MakeEngine, gate: Gate) -> None:
    running = make_engine(max_batch_size=1)
    first = running.submit(make_slot(num_inference_steps=2))
    gate.wait()
    job = running.engine.submit(make_slot(), Collector().post)
    running.engine.cancel(job)
    assert running.engine.load().waiting == 0
    gate.open()
    first.result()
    assert running.watch.outcomes == ["cancelled", "succeeded"]


def test_a_picture_is_counted_before_it_is_delivered(make_engine: MakeEngine) -> None:
    running, counted = make_engine(), Queue[int]()
    for number in range(1, 4):
        running.engine.submit(
            make_slot(),
            lambda event: counted.put(running.engine.load().finished) if isinstance(event, Generated) else None,
        )
        assert counted.get(timeout=60) == number
    assert running.watch.outcomes == ["succeeded"] * 3


def test_one_prompt_is_encoded_once_for_all_its_seeds(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[PromptTokens] = []
    encode = PromptEncoder._encode

    def counting(encoder: PromptEncoder, prompt: PromptTokens, *others: Any) -> PromptEmbedding:
        encoded.append(prompt)
        return encode(encoder, prompt, *others)

    monkeypatch.setattr(PromptEncoder, "_encode", counting)
    running = make_engine()
    slots = [make_slot(seed=s, negative_prompt="dull") for s in range(4)]
    running.generate(*slots)
    assert encoded == list(running.engine._models.read(slots[0]).rows)


@pytest.mark.parametrize(
    ("wanted", "expected"), [({1, 3}, [1, 3]), ({2}, [2]), (set(), []), ({1, 2, 3, 4, 9}, [1, 2, 3])]
)
def test_previews_follow_the_requested_steps_except_the_last(
    make_engine: MakeEngine, gate: Gate, wanted: set[int], expected: list[int]
) -> None:
    steps = 4
    collector = make_engine().submit(make_slot(num_inference_steps=steps, preview_steps=frozenset(wanted)))
    seen: list[int] = []
    gate.wait()
    for step in range(1, steps):
        gate.step()
        while expected.count(step) and step not in seen:
            event = collector.next()
            if isinstance(event, Preview):
                seen.append(event.step)
    gate.open()
    collector.result()
    assert [e.step for e in collector.events if isinstance(e, Preview)] == expected


def test_previews_respect_the_minimum_interval(make_engine: MakeEngine) -> None:
    running = make_engine(preview=PreviewConfig(min_interval_s=60))
    collector = running.submit(make_slot(num_inference_steps=20, preview_steps=frozenset(range(1, 20))))
    collector.result()
    assert [e.step for e in collector.events if isinstance(e, Preview)] == [1]


def test_progress_is_reported_at_most_four_times_a_second(make_engine: MakeEngine) -> None:
    collector = make_engine().submit(make_slot(num_inference_steps=20))
    work = collector.result().work
    told = [e.step for e in collector.events if isinstance(e, Progress)]
    assert told[0] == 1
    assert len(told) <= 1 + 4 * (work.denoise + work.decode)


def test_a_warm_up_error_is_raised(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("no compiler")

    monkeypatch.setattr(Denoiser, "warm_up", broken)
    engine = Engine(checkpoint, EngineConfig(), PreviewConfig(), Silent())
    with pytest.raises(OSError, match="no compiler"):
        engine.start([make_slot()]).result(timeout=60)
    engine.stop()
    with pytest.raises(RuntimeError, match="thread has ended"):
        engine.check()


def test_a_thread_that_computes_holds_up_the_engine_for_less_than_a_millisecond_at_a_time(
    make_engine: MakeEngine,
) -> None:
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)  # Python's own
        make_engine()
        assert sys.getswitchinterval() < 0.001
    finally:
        sys.setswitchinterval(before)


def test_a_warmed_up_engine_generates_the_same(checkpoint: Checkpoint, make_engine: MakeEngine) -> None:
    engine = Engine(checkpoint, EngineConfig(), PreviewConfig(), Silent())
    told: list[tuple[int, int]] = []
    engine.start([make_slot()], lambda number, of: told.append((number, of))).result(timeout=60)
    assert told == [(number, len(told)) for number in range(1, len(told) + 1)]
    assert len(told) > 1
    collector = Collector()
    engine.submit(make_slot(keep_pixels=True), collector.post)
    assert np.array_equal(pixels(collector.result()), pixels(make_engine().generate(make_slot(keep_pixels=True))[0]))
    engine.stop()
