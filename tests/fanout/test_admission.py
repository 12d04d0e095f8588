"""The queue of an ingress and its policy: pure, so that random schedules and simulated clocks can run it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.errors import TooManyWaiting
from serve_app.fanout.admission import Admission
from serve_app.fanout.order import Ticket
from serve_app.fanout.placement import Placement
from serve_app.messages import ReplicaStatus
from tests.fakes import REPLICA, tickets


def nothing() -> None: ...


def admission_of(images: int, max_waiting: int = 4, capacity: int = 4) -> Admission:
    admission = Admission(max_waiting, lambda: capacity)
    admission.join(tickets(images), nothing)
    return admission


def positions(admission: Admission) -> dict[int, int]:
    return {ticket.index: place for ticket, place in admission.positions().items()}


def test_as_many_as_the_replicas_can_generate_do_not_wait() -> None:
    assert positions(admission_of(3)) == {}
    assert positions(admission_of(6)) == {4: 1, 5: 2}
    assert admission_of(6).waiting() == 2


def test_the_queue_moves_up_when_one_leaves() -> None:
    admission = admission_of(6)
    admission.leave(tickets(1)[0])
    assert positions(admission) == {5: 1}


def test_everyone_hears_of_it_once() -> None:
    admission, heard = Admission(4, lambda: 4), []
    for image in range(3):
        admission.join([Ticket("a", "a", image)], lambda: heard.append("moved"))
    admission.join(tickets(2), lambda: heard.append("shared"))
    heard.clear()
    admission.leave(Ticket("a", "a", 0))
    admission.leave(Ticket("a", "a", 0))
    assert sorted(heard) == ["moved", "moved", "shared"]


def test_a_full_queue_turns_away_and_says_when_to_come_back() -> None:
    admission = admission_of(8)
    admission.admit(0, capacity=4, images_per_second=1)
    with pytest.raises(TooManyWaiting, match="4 images are waiting") as refusal:
        admission.admit(3, capacity=4, images_per_second=0.5)
    assert refusal.value.retry_after_s == 6


@pytest.mark.parametrize(("rate", "retry_after"), [(0, 10), (1000, 1), (0.01, 60)])
def test_retry_after_is_a_whole_number_of_seconds_within_reason(rate: float, retry_after: int) -> None:
    with pytest.raises(TooManyWaiting) as refusal:
        admission_of(8).admit(2, capacity=4, images_per_second=rate)
    assert refusal.value.retry_after_s == retry_after


def test_the_longest_retry_after_is_a_minute() -> None:
    with pytest.raises(TooManyWaiting) as refusal:
        admission_of(8).admit(100, capacity=4, images_per_second=0.1)
    assert refusal.value.retry_after_s == 60


REPLICAS = [replace(REPLICA, id=id_, capacity=2) for id_ in "ab"]
PLACES = 8
NEW = REPLICA.model.model_copy(update={"hash": "new"})


@dataclass
class Queue:
    """An ingress that sends out whatever may go, as the dispatcher does."""

    replicas: list[ReplicaStatus]
    admission: Admission = field(default_factory=lambda: Admission(64, lambda: 4))
    placement: Placement = field(default_factory=Placement)
    gone: list[Ticket] = field(default_factory=list)

    def send_out(self) -> None:
        for ticket in list(self.admission.in_order()):
            replica = self.placement.choose(ticket, self.replicas, self.admission.out, frozenset())
            if replica is None:
                break
            self.admission.go(ticket, replica)
            self.gone.append(ticket)

    def finish(self, which: int) -> None:
        if self.admission.out:
            ticket = list(self.admission.out)[which % len(self.admission.out)]
            self.admission.end_turn(ticket)
            self.admission.leave(ticket, succeeded=True)


arrivals = st.tuples(st.integers(0, 3), st.integers(1, 6))
steps = st.lists(st.one_of(arrivals, st.integers(0, 20)), max_size=40)


def take(queue: Queue, step: tuple[int, int] | int, generations: Iterator[int]) -> None:
    """Let so many images of a client arrive, or one that is out finish."""
    if isinstance(step, tuple):
        client, images = step
        generation = next(generations)
        queue.admission.join([Ticket(client, generation, index) for index in range(images)], nothing)
    else:
        queue.finish(step)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_no_place_is_idle_while_an_image_waits_and_no_turn_is_taken_out_of_order(
    steps: list[tuple[int, int] | int],
) -> None:
    queue, generations = Queue(REPLICAS), count()
    for step in steps:
        take(queue, step, generations)
        foreseen = list(queue.admission.in_order())
        before = len(queue.gone)
        queue.send_out()
        assert queue.gone[before:] == foreseen[: len(queue.gone) - before], "the order told is the order held"
        assert len(queue.admission.out) == min(PLACES, queue.admission.unfinished), "work conserving"
        loads = [list(queue.admission.out.values()).count(replica.id) for replica in REPLICAS]
        assert max(loads) <= PLACES // 2
    order: dict[object, list[int]] = {}
    for ticket in queue.gone:
        order.setdefault(ticket.generation, []).append(ticket.index)
    assert all(indexes == sorted(indexes) for indexes in order.values()), "the images of a request keep their order"


@settings(max_examples=300, deadline=None)
@given(steps, st.lists(st.integers(0, 20), min_size=200, max_size=200))
def test_before_a_single_image_has_its_turn_every_other_client_has_one_at_most(
    steps: list[tuple[int, int] | int], ends: list[int]
) -> None:
    queue, generations = Queue(REPLICAS), count()
    for step in steps:
        take(queue, step, generations)
        queue.send_out()
    single = Ticket("newcomer", "newcomer", 0)
    queue.admission.join([single], nothing)
    before = len(queue.gone)
    for place, end in enumerate(ends):
        if single in queue.gone:
            break
        queue.send_out()
        queue.finish(end)
        queue.admission.join([Ticket(f"later {place}", f"later {place}", 0)], nothing)
    since = [ticket.client for ticket in queue.gone[before:]]
    ahead = since[: since.index("newcomer")]
    assert len(ahead) == len(set(ahead))
    assert not any(str(client).startswith("later") for client in ahead), "whoever comes later does not overtake"


def test_a_client_gets_its_share_however_many_requests_it_sends() -> None:
    queue = Queue(REPLICAS)
    for generation in range(5):
        queue.admission.join([Ticket("many", generation, index) for index in range(4)], nothing)
    queue.send_out()
    queue.admission.join([Ticket("one", "one", index) for index in range(4)], nothing)
    assert [ticket.client for ticket in queue.admission.in_order()][:4] == ["one"] * 4
    assert [t.generation for t in queue.gone] == [0, 1, 2, 3, 4, 0, 1, 2], "and its requests take turns"


def test_what_other_ingress_replicas_hold_counts_before_what_we_sent() -> None:
    """Real loads of 1, 4, 4 and 4: the next three images go to the first replica."""
    replicas = [replace(REPLICA, id=id_, others=others) for id_, others in zip("abcd", (1, 4, 4, 4), strict=True)]
    queue = Queue(replicas, placement=Placement(ingresses=2))
    queue.admission.join(tickets(3), nothing)
    queue.send_out()
    assert list(queue.admission.out.values()) == ["a", "a", "a"]


def test_among_equally_busy_replicas_one_that_has_read_the_adapters_is_chosen() -> None:
    """Were their files gone by now, no other could read them."""
    replicas = [replace(REPLICA, id=id_, read=frozenset(read)) for id_, read in (("a", ""), ("b", "xy"), ("c", "x"))]
    queue = Queue(replicas)
    queue.admission.join([replace(ticket, files=frozenset("xy")) for ticket in tickets(3)], nothing)
    queue.send_out()
    assert list(queue.admission.out.values()) == ["b", "c", "a"]


def test_slots_go_to_the_weights_their_request_began_with_while_there_are_any() -> None:
    new = replace(REPLICA, id="new", model=NEW)
    old = [replace(ticket, model=REPLICA.model.hash) for ticket in tickets(4)]
    queue = Queue([replace(REPLICA, id="old", others=2), new])
    queue.admission.join(old, nothing)
    queue.send_out()
    assert set(queue.admission.out.values()) == {"old"}, "though the other is empty"
    queue = Queue([new])
    queue.admission.join(old, nothing)
    queue.send_out()
    assert set(queue.admission.out.values()) == {"new"}, "rather than never"


def test_while_a_replica_takes_no_slots_those_of_its_weights_wait_for_it() -> None:
    """It has failed a call a moment ago, and new weights are being rolled out."""
    old, new = replace(REPLICA, id="old"), replace(REPLICA, id="new", model=NEW)
    queue = Queue([replace(old, capacity=0), new])
    queue.admission.join([replace(ticket, model=old.model.hash) for ticket in tickets(4)], nothing)
    queue.send_out()
    assert not queue.admission.out
    queue.replicas = [old, new]
    queue.send_out()
    assert set(queue.admission.out.values()) == {"old"}


def test_what_is_out_on_a_replica_that_takes_no_slots_uses_no_room_of_the_others() -> None:
    queue = Queue(REPLICAS)
    queue.admission.join(tickets(2 * PLACES), nothing)
    queue.send_out()
    for _ in range(PLACES // 2):
        on_b = next(ticket for ticket, replica in queue.admission.out.items() if replica == "b")
        queue.admission.end_turn(on_b)
    queue.replicas = [replace(REPLICAS[0], capacity=0), REPLICAS[1]]
    queue.send_out()
    assert list(queue.admission.out.values()).count("b") == PLACES // 2


def test_an_ingress_replica_has_its_part_of_the_places_though_others_hold_all() -> None:
    queue = Queue([replace(r, others=4) for r in REPLICAS], placement=Placement(ingresses=2))
    queue.admission.join(tickets(8), nothing)
    queue.send_out()
    assert len(queue.admission.out) == PLACES // 2


def simulate(seed: int, capacity: int, draw: str) -> list[tuple[float, float]]:
    """Return what a refused client was told and when room came, each time the queue was full.

    A queue that is always full: when an image leaves, another joins.
    """
    rng, now = random.Random(seed), 0.0  # noqa: S311 - a simulation
    shortest, longest, per_unit, works = {
        "alike": (2.0, 2.0, 0.0, [1.0]),
        "even": (1.5, 2.5, 0.0, [1.0]),
        "uneven": (0.5, 3.5, 0.0, [1.0]),
        "short and long": (1.0, 1.0, 0.2, [1.0, 10.0]),
    }[draw]
    waiting = 4 * capacity
    admission = Admission(waiting, lambda: capacity, clock=lambda: now)
    index = count()
    ends: list[tuple[float, int, Ticket]] = []
    asked: list[tuple[float, float, int, int]] = []
    answers: list[tuple[float, float]] = []

    def fill() -> None:
        while admission.unfinished < capacity + waiting:
            admission.join([Ticket("a", "a", next(index), rng.choice(works))], nothing)
        while len(admission.out) < capacity:
            ticket = admission.in_order()[0]
            admission.go(ticket, "a")
            seconds = rng.uniform(shortest, longest) + per_unit * ticket.work
            heappush(ends, (now + seconds, ticket.index, ticket))

    fill()
    for left in range(1, 400):
        now, _, ticket = heappop(ends)
        admission.end_turn(ticket)
        admission.leave(ticket, succeeded=True)
        answers += [(told, now - at) for at, told, start, excess in asked if start + excess == left]
        fill()
        if left > 40 and left % 3 == 0:
            now += rng.uniform(0, max(0, ends[0][0] - now))
            excess = rng.choice([capacity // 2, capacity, 2 * capacity, 4 * capacity])
            try:
                admission.admit(excess, capacity, 0)
            except TooManyWaiting as refusal:
                asked.append((now, refusal.retry_after_s or 0, left, excess))
    return answers


@pytest.mark.parametrize("capacity", [2, 8, 32])
@pytest.mark.parametrize("draw", ["alike", "even", "uneven", "short and long"])
def test_retry_after_is_within_a_factor_of_two_of_when_room_comes(capacity: int, draw: str) -> None:
    answers = [answer for seed in range(3) for answer in simulate(seed, capacity, draw)]
    assert len(answers) > 100
    # A header has whole seconds, rounded up: half a second is no error of the estimate.
    good = [told <= 2 * max(came, 1) + 0.5 and came <= 2 * told for told, came in answers]
    assert sum(good) >= 0.95 * len(good)
