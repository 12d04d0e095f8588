"""Steps that an engine keeps, and images that go on from them on another engine."""

from dataclasses import replace

import numpy as np
import pytest

from serve_app.messages import Kept
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
