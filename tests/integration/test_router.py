"""The router on four real Serve replicas that only wait: what counts is where the calls land."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from logging.handlers import BufferingHandler
from typing import Any

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest

from serve_app.fanout.router import spread
from serve_app.messages import Call
from tests.integration.conftest import Cluster, eventually

REPLICAS = 4
MAX_OPEN = 8


class Caller:
    """Calls replicas from inside the cluster, as the ingress does."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas

    async def fan_out(self, calls: int, seconds: float) -> list[int]:
        """Return how many of the calls each replica got, most first."""
        answers = await asyncio.gather(*[self._replicas.remote(seconds) for _ in range(calls)])
        return sorted(Counter(answers).values(), reverse=True)

    async def ping_while_full(self) -> tuple[int, float]:
        """Broadcast to replicas that have all the calls they may; return how many answered and the seconds it took."""
        calls = [self._replicas.remote(3) for _ in range(2 * REPLICAS * MAX_OPEN)]
        await asyncio.sleep(0.5)
        started = time.monotonic()
        answers = await self._replicas.broadcast("ping").results_async(timeout_s=10)
        elapsed = time.monotonic() - started
        for call in calls:
            call.cancel()
        return len(answers), elapsed

    async def fan_out_when_idle(self, calls: int, seconds: float) -> list[int]:
        """Fan out once the router has heard of the end of every call: it comes some time after the result."""
        router = await self._router()
        async with asyncio.timeout(20):
            while router._open.total():  # noqa: ASYNC110 - the router has no event to wait for
                await asyncio.sleep(0.01)
        return await self.fan_out(calls, seconds)

    async def avoid(self, replicas: frozenset[str], calls: int) -> list[str]:
        """Return where calls land that must avoid these replicas."""
        terms = [Call("test", number, avoid=replicas) for number in range(calls)]
        return list(await asyncio.gather(*[self._replicas.remote(0.05, call) for call in terms]))

    async def one_by_one(self, calls: int) -> list[int]:
        return sorted(Counter([await self._replicas.remote(0) for _ in range(calls)]).values(), reverse=True)

    async def cancel_half(self, calls: int) -> list[int]:
        """Cancel every other call while all replicas are full, and return where the rest landed."""
        responses = [self._replicas.remote(0.2) for _ in range(calls)]
        await asyncio.sleep(0.05)
        for response in responses[1::2]:
            response.cancel()
        return sorted(Counter([await response for response in responses[::2]]).values(), reverse=True)

    async def cancel_at_the_last_moment(self, calls: int) -> tuple[int, list[str]]:
        """Cancel every other call when it has just been given a replica, as Serve may from another thread.

        Return how many calls are answered, and what was logged as an error.
        """
        router, given = await self._router(), count()

        def record(call: PendingRequest) -> None:
            if next(given) % 2:
                call.future.cancel()

        router._record_queue_wait_time = record
        with logged_errors() as errors:
            answers = await asyncio.gather(*[self._replicas.remote(0) for _ in range(calls)], return_exceptions=True)
        del router._record_queue_wait_time
        return sum(isinstance(answer, str) for answer in answers), [error.getMessage() for error in errors]

    async def order(self, calls: int) -> list[int]:
        """Make calls that end one by one, and return in which order they began."""
        responses = [self._replicas.begun.remote(0.5 + 0.01 * (call % 50)) for call in range(calls)]
        begun = await asyncio.gather(*responses)
        return sorted(range(calls), key=lambda call: begun[call])

    async def _router(self) -> Any:
        await self._replicas.remote(0)  # it comes with the first call
        return self._replicas._router._asyncio_router._request_router


@contextmanager
def logged_errors() -> Iterator[list[logging.LogRecord]]:
    """Collect what Serve logs as errors."""
    logger, handler = logging.getLogger("ray.serve"), BufferingHandler(1000)
    handler.setLevel(logging.ERROR)
    logger.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logger.removeHandler(handler)


class Worker:
    async def __call__(self, seconds: float, call: Call | None = None) -> str:
        await asyncio.sleep(seconds)
        return str(serve.get_replica_context().replica_id.unique_id)

    async def begun(self, seconds: float) -> float:
        """Return when this call began."""
        begun = time.monotonic()
        await asyncio.sleep(seconds)
        return begun

    def ping(self) -> str:
        return "pong"


@contextmanager
def calling(name: str, env: dict[str, str]) -> Iterator[DeploymentHandle]:
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0, "runtime_env": {"env_vars": env}}}
    replicas = serve.deployment(
        Worker,
        num_replicas=REPLICAS,
        max_ongoing_requests=MAX_OPEN + 1,
        request_router_config=spread(MAX_OPEN),
        **options,
    )
    yield serve.run(serve.deployment(Caller, **options).bind(replicas.bind()), name=name, route_prefix=None)
    serve.delete(name)


@pytest.fixture(scope="module")
def caller(cluster: Cluster) -> Iterator[DeploymentHandle]:
    with calling("router", {}) as handle:
        yield handle


@pytest.fixture(scope="module")
def forgetful(cluster: Cluster) -> Iterator[DeploymentHandle]:
    """A caller that forgets the replicas' queue lengths before its next call, and must ask for them.

    Any caller does so after ten seconds.
    """
    patience = {
        f"RAY_SERVE_{limit}QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5" for limit in ("", "MAX_")
    }  # on a busy machine
    with calling("forgetful", {"RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": "0.001", **patience}) as handle:
        yield handle


def test_four_calls_on_four_idle_replicas_go_one_to_each_every_time(caller: DeploymentHandle) -> None:
    for _ in range(50):
        assert caller.fan_out.remote(REPLICAS, 0.01).result(timeout_s=30) == [1, 1, 1, 1]


def test_also_when_the_replicas_must_be_asked_first(forgetful: DeploymentHandle) -> None:
    for _ in range(50):
        assert forgetful.fan_out.remote(REPLICAS, 0.1).result(timeout_s=30) == [1, 1, 1, 1]


def test_a_call_goes_to_no_replica_that_it_must_avoid_while_there_are_others(caller: DeploymentHandle) -> None:
    ids = sorted(set(caller.avoid.remote(frozenset(), REPLICAS).result(timeout_s=30)))
    landed = caller.avoid.remote(frozenset(ids[1:]), MAX_OPEN).result(timeout_s=30)
    assert set(landed) == {ids[0]}
    assert len(caller.avoid.remote(frozenset(ids), MAX_OPEN).result(timeout_s=30)) == MAX_OPEN


def test_calls_one_at_a_time_take_turns(caller: DeploymentHandle) -> None:
    assert caller.one_by_one.remote(2 * REPLICAS).result(timeout_s=30) == [2, 2, 2, 2]


@pytest.mark.parametrize("calls", [8, 24, 32])
def test_many_calls_spread_evenly(caller: DeploymentHandle, calls: int) -> None:
    for _ in range(5):
        assert caller.fan_out_when_idle.remote(calls, 0.5).result(timeout_s=30) == [calls // REPLICAS] * REPLICAS


def test_more_calls_than_fit_wait_for_room_and_stay_even(caller: DeploymentHandle) -> None:
    landed = caller.fan_out.remote(3 * REPLICAS * MAX_OPEN, 0.5).result(timeout_s=30)
    assert sum(landed) == 3 * REPLICAS * MAX_OPEN
    assert max(landed) - min(landed) <= MAX_OPEN


def test_calls_that_wait_for_room_get_it_in_order_of_arrival(caller: DeploymentHandle) -> None:
    full = REPLICAS * MAX_OPEN
    begun = caller.order.remote(6 * full).result(timeout_s=60)
    overtaken = [place - call for place, call in enumerate(begun) if call >= full]
    assert max(overtaken) < MAX_OPEN, "so many calls that came later began before it"


def test_cancelled_calls_leave_no_trace(caller: DeploymentHandle) -> None:
    for _ in range(3):
        assert sum(caller.cancel_half.remote(2 * REPLICAS * MAX_OPEN).result(timeout_s=30)) == REPLICAS * MAX_OPEN

    def spread() -> bool:
        return bool(caller.fan_out.remote(REPLICAS, 0.01).result(timeout_s=30) == [1, 1, 1, 1])

    eventually(spread, seconds=5)  # once the replicas have reported the ends of the cancelled calls
    for _ in range(10):
        assert caller.fan_out.remote(REPLICAS, 0.01).result(timeout_s=30) == [1, 1, 1, 1]


def test_a_call_cancelled_at_the_last_moment_is_no_error(caller: DeploymentHandle) -> None:
    assert caller.cancel_at_the_last_moment.remote(2 * REPLICAS).result(timeout_s=30) == (REPLICAS, [])


def test_full_replicas_still_answer_broadcasts(caller: DeploymentHandle) -> None:
    answers, seconds = caller.ping_while_full.remote().result(timeout_s=30)
    assert answers == REPLICAS
    assert seconds < 2, "it must not wait for a call of three seconds"
