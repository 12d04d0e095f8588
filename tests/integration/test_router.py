"""The way of a slot to a replica, on four real Serve replicas that only wait: what counts is where the calls land."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.fanout.router import directed
from tests.integration.conftest import Cluster, let_go
from tests.integration.waiting import MAX_OPEN, REPLICAS, Caller, Worker


@contextmanager
def calling(name: str) -> Iterator[DeploymentHandle]:
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}}
    replicas = serve.deployment(
        Worker,
        num_replicas=REPLICAS,
        max_ongoing_requests=MAX_OPEN + 4,
        request_router_config=directed(),
        **options,
    )
    yield serve.run(serve.deployment(Caller, **options).bind(replicas.bind()), name=name, route_prefix=None)
    let_go(name)


@pytest.fixture(scope="module")
def caller(cluster: Cluster) -> Iterator[DeploymentHandle]:
    with calling("router") as handle:
        yield handle


def test_four_calls_on_four_idle_replicas_go_one_to_each_every_time(caller: DeploymentHandle) -> None:
    for _ in range(50):
        assert caller.fan_out.remote(REPLICAS, 0.01).result(timeout_s=30) == [1, 1, 1, 1]


@pytest.mark.parametrize("calls", [8, 24, 32])
def test_many_calls_spread_evenly(caller: DeploymentHandle, calls: int) -> None:
    for _ in range(5):
        assert caller.fan_out.remote(calls, 0.5).result(timeout_s=30) == [calls // REPLICAS] * REPLICAS


def test_more_calls_than_fit_wait_for_room_and_stay_even(caller: DeploymentHandle) -> None:
    landed = caller.fan_out.remote(3 * REPLICAS * MAX_OPEN, 0.5).result(timeout_s=30)
    assert sum(landed) == 3 * REPLICAS * MAX_OPEN
    assert max(landed) - min(landed) <= MAX_OPEN


def test_no_replica_has_more_calls_than_it_may_though_some_fail_to_be_sent(caller: DeploymentHandle) -> None:
    most = caller.most_at_once.remote(400, 0.05, failing=0.05).result(timeout_s=60)
    assert most <= MAX_OPEN + 1, "one that has ended may not have left yet"


def test_cancelled_calls_leave_no_trace(caller: DeploymentHandle) -> None:
    for _ in range(3):
        assert sum(caller.cancel_half.remote(2 * REPLICAS * MAX_OPEN).result(timeout_s=30)) == REPLICAS * MAX_OPEN
    for _ in range(10):
        assert caller.fan_out.remote(REPLICAS, 0.01).result(timeout_s=30) == [1, 1, 1, 1]


def test_a_call_for_a_replica_that_is_gone_is_returned(caller: DeploymentHandle) -> None:
    assert caller.to_nobody.remote().result(timeout_s=30) == "returned"


def test_calls_that_name_no_replica_are_answered_by_any(caller: DeploymentHandle) -> None:
    assert caller.to_anybody.remote(40).result(timeout_s=30) == 40


def test_full_replicas_still_answer_broadcasts(caller: DeploymentHandle) -> None:
    answers, seconds = caller.ping_while_full.remote().result(timeout_s=30)
    assert answers == REPLICAS
    assert seconds < 2, "it must not wait for a call of three seconds"
