"""Steps that an engine keeps, and images that go on from them on another engine."""

from dataclasses import replace

import numpy as np
import pytest

from serve_app.errors import SlotFailed
from serve_app.messages import Kept, Paused, Preview, Progress
from serve_app.recipe import SchedulerName
from tests.conftest import MakeEngine, make_slot
from tests.replica.test_engine import pixels


@pytest.mark.parametrize("scheduler", ["euler", "dpmpp_2m_sde", "heun"])
def test_an_image_that_goes_on_elsewhere_beside_others_is_the_same(
    make_engine: MakeEngine, scheduler: SchedulerName
) -> None:
    slot = make_slot(num_inference_steps=9, scheduler=scheduler, keep_pixels=True)
    first = make_engine(keep_every=3)
    collector = first.submit(slot)
    whole = collector.result()
    kept = [event for event in collector.events if isinstance(event, Kept)]
    assert [event.step for event in kept] == [3, 6], "the last step gives the picture itself"
    assert all(event.model == whole.model.hash for event in kept)
    second = make_engine(keep_every=3, max_batch_size=2)
    for state, left in zip(kept, (6, 3), strict=True):
        before = len(second.watch.batches)
        (later,) = second.generate(replace(slot, kept=state))
        calls = len(second.watch.batches) - before
        assert calls == (2 * left - 1 if scheduler == "heun" else left)
        assert np.array_equal(pixels(later), pixels(whole))
        later, _ = second.generate(replace(slot, kept=state), make_slot(seed=5, width=72))
        assert np.array_equal(pixels(later), pixels(whole))


def test_nothing_is_kept_unless_asked_for(make_engine: MakeEngine) -> None:
    collector = make_engine().submit(make_slot(num_inference_steps=9))
    collector.result()
    assert not any(isinstance(event, Kept) for event in collector.events)


@pytest.mark.parametrize("scheduler", ["euler_a", "dpmpp_2m_sde", "heun", "pndm"])
def test_a_sketch_shows_the_picture_so_far_and_goes_on_elsewhere_to_the_same(
    make_engine: MakeEngine, scheduler: SchedulerName
) -> None:
    slot = make_slot(num_inference_steps=9, scheduler=scheduler, keep_pixels=True, preview_steps=frozenset({3}))
    first = make_engine(max_batch_size=2, keep_every=3)
    collector = first.submit(slot)
    whole = collector.result()
    (shown,) = [event for event in collector.events if isinstance(event, Preview)]
    before = first.engine.load().finished
    sketch, beside = first.submit_together(replace(slot, pause_after=3), make_slot(seed=5, width=72))
    while not isinstance(paused := sketch.next(), Paused):
        assert isinstance(paused, Progress), "of its last step nothing else is told"
    assert (paused.kept.step, paused.preview) == (3, shown)
    beside.result()
    assert first.engine.load().finished == before + 1, "a sketch is no finished image"
    assert sorted(first.watch.outcomes) == ["paused", "succeeded", "succeeded"]
    assert paused.work.gpu > 0
    second = make_engine()
    (later,) = second.generate(replace(slot, kept=paused.kept))
    assert np.array_equal(pixels(later), pixels(whole))


def test_a_sketch_that_cannot_be_shown_fails(make_engine: MakeEngine) -> None:
    """Not finite: so would its picture be."""
    slot = make_slot(num_inference_steps=9, pause_after=3)
    engine = make_engine()
    engine.engine._models.previews._tiny_shift = float("nan")  # type: ignore[union-attr]  # there are previews
    with pytest.raises(SlotFailed, match="not numbers"):
        engine.submit(slot).result()
