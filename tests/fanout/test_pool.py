"""What the ingress knows of its replicas."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Set
from contextlib import aclosing, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ObjectStoreFullError, TaskCancelledError
from ray.serve.exceptions import RequestCancelledError

from serve_app.adapters import Version
from serve_app.background import background
from serve_app.canvas import Canvas, Layer
from serve_app.errors import AdapterError, NotReady, ReplicaLost
from serve_app.fanout.deployed import Deployed
from serve_app.fanout.pool import POLL_INTERVAL_S, Pool
from serve_app.messages import Generated, ReadAdapters, ReplicaStatus, SlotEvent
from tests.conftest import make_slot
from tests.fakes import REPLICA, Answer
from tests.fanout.handles import Answered, Handle
from tests.waiting import until

INK = Version(Path("/adapters/ink.safetensors"), 1, 2, 3, 4)


@dataclass
class Asked(Handle):
    """Is asked for adapters, and answers `answer`."""

    answer: "ReadAdapters | BaseException | None" = None

    @property
    def check_adapters(self) -> Any:
        return SimpleNamespace(remote=self._check)

    def _check(self, *_: object) -> "asyncio.Future[ReadAdapters | AdapterError]":
        response = asyncio.get_running_loop().create_future()
        if isinstance(self.answer, TimeoutError):
            return response
        if isinstance(self.answer, ReadAdapters | AdapterError):
            response.set_result(self.answer)
        elif self.answer:
            response.set_exception(self.answer)
        return response


@pytest.mark.parametrize(
    ("answer", "told"),
    [(ReadAdapters("a", {INK: "sha256:1"}), {INK: "sha256:1"}), (ActorDiedError(), None), (TimeoutError(), None)],
)
async def test_adapters_are_known_to_fit_only_where_a_replica_has_said_so(
    monkeypatch: pytest.MonkeyPatch, answer: ReadAdapters | BaseException, told: object
) -> None:
    monkeypatch.setattr("serve_app.fanout.pool._CHECK_TIMEOUT_S", 0.05)
    async with asyncio.timeout(10):
        assert await Pool(Asked(answer=answer)).check_adapters([], []) == told


async def test_what_a_replica_finds_wrong_with_adapters_is_raised_here() -> None:
    with pytest.raises(AdapterError, match='"ink" is damaged'):
        await Pool(Asked(answer=AdapterError("ink", "is damaged"))).check_adapters([], [])


@dataclass
class Sleeping(Handle):
    """Has no replica until a call waits in it."""

    woken: "list[asyncio.Future[ReplicaStatus]]" = field(default_factory=list)

    @property
    def status(self) -> Any:
        return SimpleNamespace(remote=self._wake)

    def _wake(self) -> "asyncio.Future[ReplicaStatus]":
        assert IN_A_REQUEST not in copy_context(), "a call in the context of a request would end with it"
        self.woken.append(asyncio.get_running_loop().create_future())
        return self.woken[-1]

    async def _results(self) -> list[Any]:
        self.unready = 0 if self.woken else 1
        return await super()._results()


def asleep(handle: Sleeping) -> Pool:
    pool = Pool(handle, may_sleep=True)
    pool.deployed = Deployed(replicas=0, ingresses=1, asleep=True)
    return pool


IN_A_REQUEST = ContextVar[bool]("IN_A_REQUEST")


async def test_a_request_wakes_a_service_that_sleeps_and_is_told_when_to_come_again() -> None:
    handle = Sleeping()
    pool = asleep(handle)
    IN_A_REQUEST.set(True)
    async with background(pool.keep_polling()):
        await until(lambda: handle.polls)
        assert (pool.readiness, handle.woken) == ("asleep", [])
        polls = len(handle.polls)
        for _ in range(2):
            with pytest.raises(NotReady, match="was asleep") as refused:
                _ = pool.any_replica
            assert refused.value.retry_after_s == 10
        assert pool.readiness == "waking"
        await until(lambda: pool.readiness == "ready")
        assert len(handle.woken) == 1, "one call is enough"
        assert pool.any_replica.id == REPLICA.id
        assert len(handle.polls) - polls < 4, "nothing hurries while it sleeps"


async def test_a_request_in_whose_midst_the_last_replica_went_wakes_the_service() -> None:
    handle = Sleeping()
    async with background(asleep(handle).keep_polling(waiting=lambda: 1)):
        await until(lambda: handle.woken)
    assert len(handle.woken) == 1


async def test_a_service_that_sleeps_still_knows_its_model() -> None:
    handle = Sleeping()
    pool = asleep(handle)
    handle.woken.append(asyncio.get_running_loop().create_future())
    async with background(pool.keep_polling()):
        await until(lambda: pool.status.ready == 1)
        handle.woken.clear()
        await until(lambda: pool.status.ready == 0)
        assert pool.model == REPLICA.model
    assert not handle.woken


async def test_a_service_that_may_not_sleep_is_not_woken() -> None:
    handle = Sleeping()
    with pytest.raises(NotReady, match="no replica is ready"):
        _ = Pool(handle).any_replica
    await asyncio.sleep(0)
    assert not handle.woken


async def test_replicas_that_become_ready_are_known_before_a_regular_poll_is_due() -> None:
    pool = Pool(Handle(unready=1))
    polling = asyncio.create_task(pool.keep_polling())
    await asyncio.sleep(POLL_INTERVAL_S / 2)
    polling.cancel()
    with suppress(asyncio.CancelledError):
        await polling
    assert pool.status.ready == 1


async def test_a_poll_that_serve_is_too_busy_for_is_told_of_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray drops gauges that nobody sets."""
    told: list[Set[str]] = []

    async def busy(*_: Any) -> dict[str, Answer]:
        raise TimeoutError

    monkeypatch.setattr("serve_app.fanout.pool.ask_each", busy)
    async with background(Pool(Handle()).keep_polling(told.append)):
        await until(lambda: told)
    assert told == [frozenset()]


async def test_polling_ends_when_told_to_whatever_is_answered_at_that_moment() -> None:
    polling = asyncio.create_task(Pool(Handle(unready=1, on_answer=lambda: polling.cancel())).keep_polling())
    await asyncio.wait([polling], timeout=POLL_INTERVAL_S)
    assert polling.cancelled()


async def test_each_poll_says_which_calls_are_still_waited_for() -> None:
    handle = Handle()
    pool = Pool(handle)
    watching = [
        asyncio.create_task(anext(pool.stream(make_slot(), REPLICA.id, time.monotonic() + 60))) for _ in range(3)
    ]
    async with background(pool.keep_polling()):
        await asyncio.sleep(0)
        watching[1].cancel()
        await until(lambda: len(handle.polls) == 2)
    first, second = handle.polls
    assert [first.has_given_up(call) for call in handle.calls] == [False, False, False]
    assert [second.has_given_up(call) for call in handle.calls] == [False, True, False]
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)


WELL, FROZEN = replace(REPLICA, id="well"), replace(REPLICA, id="frozen")


async def test_a_replica_that_hangs_hides_no_other_and_is_lost_from_sight_until_it_answers() -> None:
    thaws, told = asyncio.Event(), list[Set[str]]()
    handle = Handle(answers=[Answer("1", WELL), Answer("2", FROZEN)])
    pool = Pool(handle)

    def seen() -> list[str]:
        return [replica.id for replica in pool.status.replicas]

    async with background(pool.keep_polling(told.append)):
        await until(lambda: seen() == ["well", "frozen"])
        handle.answers = [Answer("1", replace(WELL, active=3)), Answer("2", FROZEN, thaws)]
        await until(lambda: pool.status.active == 3)
        assert seen() == ["well", "frozen"], "what the others say is news, and one poll is soon missed"
        await until(lambda: seen() == ["well"])
        assert told[-1] == {"frozen"}
        thaws.set()
        await until(lambda: seen() == ["well", "frozen"])
        await until(lambda: told[-1] == set())


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RequestCancelledError(), TaskCancelledError()])
async def test_a_call_that_nobody_here_has_cancelled_is_lost(error: BaseException) -> None:
    with pytest.raises(ReplicaLost):
        await anext(Pool(Handle(error=error)).stream(make_slot(), REPLICA.id, time.monotonic() + 60))


async def test_who_cancels_its_call_is_cancelled() -> None:
    call = asyncio.ensure_future(anext(Pool(Handle()).stream(make_slot(), REPLICA.id, time.monotonic() + 60)))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()


@pytest.mark.parametrize("way", [Pool.generate, Pool.stream])
async def test_a_call_is_cancelled_unless_it_has_ended(way: Callable[..., AsyncGenerator[SlotEvent]]) -> None:
    handle = Answered()
    async with aclosing(way(Pool(handle), make_slot(), REPLICA.id, time.monotonic() + 60)) as events:
        while not isinstance(await anext(events), Generated):
            pass
    assert handle.cancelled == 0
    async with aclosing(Pool(handle).stream(make_slot(), REPLICA.id, time.monotonic() + 60)) as events:
        await anext(events)
    assert handle.cancelled == 1


async def test_a_call_says_where_it_goes_and_for_how_long_it_is_waited_for() -> None:
    handle = Handle()
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await anext(Pool(handle).stream(make_slot(), "abc", time.monotonic() + 60))
    (call,) = handle.calls
    assert call.replica == "abc"
    assert 59 < call.timeout_s <= 60


async def test_slots_of_a_frozen_replica_that_serve_has_given_up_are_taken_back() -> None:
    """It was the only one, so nothing is listed."""
    told = list[Set[str]]()
    handle = Handle(answers=[Answer("1", FROZEN)])
    pool = Pool(handle)
    async with background(pool.keep_polling(told.append)):
        await until(lambda: pool.status.replicas)
        for _ in range(5):
            pool._sight.missed(["1"])
        handle.answers = []
        await until(lambda: {"frozen"} in told)
    assert pool.status.ready == 0


async def test_a_picture_for_which_there_is_no_room_is_refused_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise ObjectStoreFullError("full")

    monkeypatch.setattr("ray.put", full)
    with pytest.raises(NotReady, match="no room for your picture"):
        await Pool(Handle()).share(Canvas(Layer.of(np.zeros((8, 8, 3), np.uint8))))
