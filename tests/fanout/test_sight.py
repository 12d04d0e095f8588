"""What the polls show of the replicas."""

from dataclasses import replace

import pytest

from serve_app.fanout.sight import Sight
from serve_app.messages import ReplicaStatus
from tests.fanout.test_pool import FROZEN, WELL


def sight_of(*replicas: ReplicaStatus) -> Sight:
    sight = Sight()
    sight.polled([f"actor of {r.id}" for r in replicas])
    for replica in replicas:
        sight.answered(f"actor of {replica.id}", replica)
    return sight


def silent_sight(*replicas: ReplicaStatus) -> Sight:
    sight = sight_of(*replicas)
    for _ in range(5):
        sight.missed([f"actor of {r.id}" for r in replicas])
    return sight


def test_a_replica_that_says_it_cannot_generate_gets_nothing_and_loses_what_it_has() -> None:
    status = sight_of(WELL, replace(FROZEN, fault="out of its mind")).status()
    assert [r.id for r in status.replicas] == ["well"]
    assert status.lost == {"frozen"}


def test_a_replica_that_fails_a_call_gets_no_more_until_it_answers_again_and_keeps_the_others() -> None:
    sight = sight_of(WELL, FROZEN)
    sight.doubt("frozen")
    assert [(r.id, r.capacity) for r in sight.status().replicas] == [("well", 4), ("frozen", 0)]
    assert not sight.status().lost
    sight.answered("actor of frozen", FROZEN)
    assert sight.status().capacity == 8


def test_what_a_replica_has_just_read_is_known_before_it_answers_again() -> None:
    sight = sight_of(WELL, replace(FROZEN, read=frozenset({"old"})))
    sight.has_read("frozen", ["new"])
    assert [r.read for r in sight.status().replicas] == [frozenset(), {"old", "new"}]


def test_a_service_whose_only_replica_fails_a_call_is_still_ready_and_knows_its_model() -> None:
    sight = sight_of(WELL)
    sight.doubt("well")
    assert sight.status().ready == 1
    assert [r.model for r in sight.status().replicas] == [WELL.model]


def test_a_replica_that_answers_a_poll_with_an_error_is_not_known_until_it_answers_again() -> None:
    sight = sight_of(WELL, FROZEN)
    sight.failed("actor of frozen")
    assert [r.id for r in sight.status().replicas] == ["well"]
    sight.answered("actor of frozen", FROZEN)
    assert sight.status().ready == 2


def test_a_replica_that_serve_no_longer_lists_gets_nothing_and_may_finish_what_it_has() -> None:
    sight = sight_of(WELL, FROZEN)
    sight.polled(["actor of well"])
    assert [r.id for r in sight.status().replicas] == ["well"]
    assert not sight.status().lost


def test_where_no_replica_answers_any_more_none_is_lost() -> None:
    """The machine is busy: to generate everything from the start would make it busier."""
    sight = silent_sight(WELL, FROZEN)
    assert sight.status().ready == 2
    assert not sight.status().lost


@pytest.mark.parametrize("still_listed", [(), ("actor of new",)])
def test_where_serve_has_given_up_replicas_that_are_silent_they_are_lost_though_none_answers(
    still_listed: tuple[str, ...],
) -> None:
    sight = silent_sight(WELL, FROZEN)
    sight.polled(still_listed)
    assert sight.status().lost == {"well", "frozen"}
    assert not sight.status().replicas
