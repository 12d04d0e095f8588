"""The simulation against sums done by hand. The times are powers of two, so that the sums are exact."""

import pytest

from benchmarks.capacity import SUSTAINED, cost_per_1000
from benchmarks.fleet import Closed, Fleet, Kind, Open, Times
from benchmarks.measures import rate
from benchmarks.simulation import simulate

TIMES = Times(prompt=0.25, step=0.5, vae=1.0, file=2.0, around=4.0)
ON_GPU = 0.25 + 4 * 0.5 + 1.0


def first_answer(fleet: Fleet, kind: Kind, times: Times = TIMES) -> float:
    return simulate(times, fleet, Closed(1, kind), seconds=50).answers[0].seconds


def test_one_image_on_one_gpu_takes_the_sum_of_its_parts() -> None:
    assert first_answer(Fleet(gpus=1), Kind(1, steps=4)) == ON_GPU + 2 + 4


def test_twice_the_gpus_halve_the_line() -> None:
    images = Kind(8, steps=4)
    assert first_answer(Fleet(gpus=1), images) == 8 * ON_GPU + 2 + 4
    assert first_answer(Fleet(gpus=2), images) == 4 * ON_GPU + 2 + 4


def test_images_take_turns_on_a_gpu() -> None:
    # Two in turns end within one step and a VAE of each other; one after the other the first would end at half.
    both = simulate(TIMES, Fleet(gpus=1), Closed(2, Kind(1, steps=4)), seconds=13).answers
    assert [answer.seconds for answer in both] == [2 * ON_GPU - 1.0 + 2 + 4 - 0.5, 2 * ON_GPU + 2 + 4]


def test_a_smaller_image_costs_its_part() -> None:
    assert first_answer(Fleet(gpus=1), Kind(1, steps=4, cost=0.5)) == 0.25 + 0.5 * 3.0 + 2 + 4


@pytest.mark.parametrize(("clients", "refused"), [(8, 0), (9, 1), (12, 4)])
def test_refusals_begin_where_admission_says(clients: int, refused: int) -> None:
    # Four are generated at once, and four may wait. They all come at the same moment, and none is done before 8 s.
    fleet = Fleet(gpus=1, max_batch_size=4, max_waiting_images=4, max_images=1)
    assert simulate(TIMES, fleet, Closed(clients, Kind(1, steps=4)), seconds=2.5).refused == refused


def test_an_ingress_has_one_processor() -> None:
    times = Times(prompt=0, step=0, vae=0, file=0, around=0, ingress=1.0)
    assert first_answer(Fleet(gpus=8), Kind(8), times) == 8


def test_ingress_replicas_share_the_gpus_and_the_queue() -> None:
    load = Open(2 * 4 / ON_GPU, (Kind(1, steps=4),))
    outcome = simulate(TIMES, Fleet(gpus=4, ingresses=2, max_waiting_images=8), load, seconds=80, warm_up=20)
    assert outcome.gpu_use == pytest.approx(1, abs=0.02)
    assert outcome.images_per_second == pytest.approx(4 / ON_GPU, rel=0.05)
    assert outcome.refusals == pytest.approx(0.5, abs=0.1)


def test_a_light_load_is_carried_without_refusals() -> None:
    asked = 0.5 * 4 / ON_GPU
    outcome = simulate(TIMES, Fleet(gpus=4), Open(asked, (Kind(1, steps=4),)), seconds=400, warm_up=50)
    assert outcome.images_per_second == pytest.approx(asked, rel=0.1)
    assert outcome.refused == 0
    assert min(outcome.finished) >= 50, "the warm-up does not count"
    assert outcome.percentile(50) <= outcome.percentile(95) <= outcome.percentile(99)


def test_a_price_is_that_of_all_gpus_for_what_they_made() -> None:
    fleet = Fleet(gpus=2)
    outcome = simulate(TIMES, fleet, Closed(16, Kind(1, steps=4)), seconds=65, warm_up=13)
    assert cost_per_1000(fleet, outcome, price=3.6) == pytest.approx(3.6 / 3600 * ON_GPU * 1000, rel=0.03)


def test_an_ingress_may_use_what_the_others_leave() -> None:
    # Eight are generated at once, and four of eight may wait at each ingress.
    fleet = Fleet(gpus=2, ingresses=2, max_waiting_images=8, max_images=1)
    assert first_answer(fleet, Kind(12, steps=4)) == 6 * ON_GPU + 2 + 4


def test_the_load_that_was_measured_on_four_gpus() -> None:
    outcome = simulate(SUSTAINED, Fleet(gpus=4), Closed(16, Kind(4)), seconds=40, warm_up=10)
    assert rate(outcome.finished, warm_up=0) == [pytest.approx(6.18, rel=0.05)]
