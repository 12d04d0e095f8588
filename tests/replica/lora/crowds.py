"""Adapters in a crowd."""

from collections.abc import Sequence
from typing import Any

from serve_app.replica.lora.sets import Adapters
from tests.conftest import MakeEngine, make_slot


def require_a_crowd_is_as_alone(make_engine: MakeEngine, mixes: Sequence[Adapters], **recipe: Any) -> None:
    """Require that pictures with these adapters, all at once, are those that each gives alone.

    And that those without any are what an engine without adapters generates.
    """
    slots = [
        (make_slot(seed=100 + i, keep_pixels=True, guidance_scale=(i % 2) * 5.0, **recipe), mix)
        for i, mix in enumerate(mixes)
    ]
    without = make_engine().generate(*(slot for slot, mix in slots if not mix.key))
    alone = make_engine(max_batch_size=1, weight_sets=1)
    expected = [alone.submit(slot, mix).result() for slot, mix in slots]
    crowd = make_engine(max_batch_size=len(slots), weight_sets=4)
    with crowd.engine._changed:
        collectors = [crowd.submit(slot, mix) for slot, mix in slots]
    together = [collector.result() for collector in collectors]

    assert len({one.b64_json for one in expected}) == len(slots)
    assert [one.b64_json for one in together] == [one.b64_json for one in expected]
    assert [one.b64_json for one in without] == [
        one.b64_json for one, (_, mix) in zip(expected, slots, strict=True) if not mix.key
    ]
