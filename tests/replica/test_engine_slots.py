"""A slot that fails on an engine, and what fails beside it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.errors import SlotFailed, SlotReturned
from serve_app.messages import Generated, Slot
from serve_app.replica.denoise import Denoiser
from serve_app.replica.embeddings import Embeddings
from serve_app.replica.lora.sets import WeightSet
from serve_app.replica.model_runner import ModelRunner
from serve_app.replica.prompt_reader import ReadPrompts
from serve_app.replica.prompts import PromptEmbedding, PromptEncoder
from tests.conftest import MakeEngine, make_slot
from tests.replica.test_engine import pixels


def poisoned(monkeypatch: pytest.MonkeyPatch, poison: Callable[[PromptEmbedding], PromptEmbedding]) -> None:
    """Change the embedding of the prompt "poison"."""
    conditions, read = PromptEncoder.conditions, ModelRunner.read
    poisonous: list[ReadPrompts] = []

    def noting(self: ModelRunner, slot: Slot, embeddings: Embeddings | None = None) -> ReadPrompts:
        prompts = read(self, slot, embeddings)
        poisonous.extend([prompts] if slot.recipe.prompt == "poison" else [])
        return prompts

    def poisoning(
        self: PromptEncoder, prompts: ReadPrompts, weights: WeightSet | None = None
    ) -> Sequence[PromptEmbedding]:
        embeddings = conditions(self, prompts, weights)
        return [poison(embedding) for embedding in embeddings] if prompts in poisonous else embeddings

    monkeypatch.setattr(ModelRunner, "read", noting)
    monkeypatch.setattr(PromptEncoder, "conditions", poisoning)


def test_a_slot_that_turns_to_nan_leaves_its_neighbours_alone(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, lambda e: replace(e, pooled=e.pooled * float("nan")))
    running = make_engine(max_batch_size=2, images_per_call=2)
    bad, good = running.submit_together(make_slot(prompt="poison"), make_slot(keep_pixels=True))
    with pytest.raises(SlotFailed, match="not numbers"):
        bad.result()
    beside_another = running.generate(make_slot(prompt="other"), make_slot(keep_pixels=True))[1]
    assert np.array_equal(pixels(good.result()), pixels(beside_another))


def test_a_slot_that_cannot_be_prepared_fails_alone(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(embedding: PromptEmbedding) -> PromptEmbedding:
        raise ZeroDivisionError("secret detail")

    poisoned(monkeypatch, explode)
    running = make_engine()
    bad, good = running.submit(make_slot(prompt="poison")), running.submit(make_slot())
    with pytest.raises(SlotFailed) as failure:
        bad.result()
    assert failure.value.type == "internal"
    assert "secret" not in failure.value.message
    assert "secret detail" in caplog.text
    assert isinstance(good.result(), Generated)


def test_running_out_of_memory_fails_only_the_batch(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = Denoiser.predict

    def hungry(denoiser: Denoiser, trajectories: Any) -> Any:
        if trajectories[0].latents.shape[-1] > 8:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return predict(denoiser, trajectories)

    monkeypatch.setattr(Denoiser, "predict", hungry)
    running = make_engine()
    large, small = running.submit(make_slot(width=128)), running.submit(make_slot())
    with pytest.raises(SlotFailed) as failure:
        large.result()
    assert failure.value.type == "out_of_memory"
    assert isinstance(small.result(), Generated)
    running.engine.check()


@pytest.mark.parametrize(
    "place",
    [
        "denoise.Denoiser.predict",
        "lanes.Lane.step_launched",
        "decode.Decoder.decode",
        "decode.PendingPixels.wait",
        "previews.PreviewDecoder.decode",
        "trajectory.Trajectory.of",
        "prompts.PromptEncoder.conditions",
    ],
)
def test_a_dead_device_returns_the_slots_and_fails_the_health_check_wherever_it_shows(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A device error appears at the next call that waits for the device, which can be any of these."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(f"serve_app.replica.{place}", broken)
    running = make_engine()
    running.engine.check()
    with pytest.raises(SlotReturned, match="device has failed"):
        running.submit(make_slot(preview_steps=frozenset({1}), num_inference_steps=50)).result()
    with pytest.raises(RuntimeError, match="device has failed"):
        running.engine.check()
    with pytest.raises(SlotReturned):
        running.submit(make_slot())
    assert running.watch.outcomes == ["returned"]


def test_a_failed_preview_does_not_fail_the_picture(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("no encoder")

    monkeypatch.setattr("serve_app.replica.output_processor.encode_preview", broken)
    assert isinstance(make_engine().submit(make_slot(preview_steps=frozenset({1}))).result(), Generated)
    assert "no encoder" in caplog.text


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_file_that_cannot_say_how_it_was_made_still_holds_the_picture(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, output_format: str
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("EXIF data is too long")

    slot = make_slot(index=3, output_format=output_format, keep_pixels=True)
    (whole,) = make_engine().generate(slot)
    monkeypatch.setattr("serve_app.imaging.parameters_text", broken)
    (bare,) = make_engine().generate(slot)
    assert np.array_equal(pixels(bare), pixels(whole))
    assert bare.warnings == ("the file of image 3 does not say how it was generated",)
    assert whole.warnings == ()
    assert "EXIF data is too long" in caplog.text
