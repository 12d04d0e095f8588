from dataclasses import dataclass

import pytest

from serve_app.replica.batching import Load
from serve_app.replica.demand import Demand
from serve_app.scaling import IMAGES, PER_SECOND, QUEUED


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_counts_own_images_and_those_that_wait_at_each_caller() -> None:
    demand = Demand(Clock())
    demand.told("a", 5)
    demand.told("b", 2)
    demand.told("a", 3)
    stats = demand.stats(Load(active=4, waiting=3, finished=10))
    assert (stats[IMAGES], stats[QUEUED]) == (7, 5)


def test_forgets_callers_that_have_gone() -> None:
    clock = Clock()
    demand = Demand(clock)
    demand.told("a", 5)
    clock.now += 6
    demand.told("b", 2)
    assert demand.stats(Load(0, 0, 0))[QUEUED] == 2


def test_the_pace_is_that_of_the_time_with_work() -> None:
    clock = Clock()
    demand = Demand(clock)
    assert demand.stats(Load(0, 0, 0))[PER_SECOND] == 0
    for load in [Load(4, 0, 0), Load(4, 0, 3), Load(0, 0, 4), Load(0, 0, 4), Load(2, 0, 4), Load(2, 0, 6)]:
        demand.look(load)
        clock.now += 0.5
    # 3 and 1 images in the first second of work, none while idle, 2 in the last half
    assert demand.stats(Load(0, 0, 6))[PER_SECOND] == pytest.approx(6 / 1.5)
