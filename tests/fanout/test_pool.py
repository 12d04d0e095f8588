"""What the ingress knows of its replicas."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentBroadcastResponse

from serve_app.background import background
from serve_app.errors import SlotReturned
from serve_app.fanout.pool import POLL_INTERVAL_S, Pool, PoolStatus
from serve_app.messages import Call, OpenCalls, ReplicaStatus, Slot
from tests.conftest import make_slot
from tests.fakes import REPLICA


@dataclass
class Handle:
    """Broadcasts as Serve does, to a replica that becomes ready after the first `unready` polls.

    Its calls are never answered.
    """

    unready: int = 0
    on_answer: Callable[[], Any] = lambda: None
    polls: list[OpenCalls] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def options(self, **_: Any) -> "Handle":
        return self

    @property
    def stream(self) -> "Handle":
        return self

    def remote(self, _: Slot, call: Call) -> "Response":
        self.calls.append(call)
        return Response()

    def broadcast(self, method: str, calls: OpenCalls) -> DeploymentBroadcastResponse:
        assert method == "poll"
        self.polls.append(calls)
        return DeploymentBroadcastResponse(self._results(), asyncio.get_running_loop())

    async def _results(self) -> list[Any]:
        await asyncio.sleep(0)
        self.on_answer()
        self.unready -= 1
        if self.unready >= 0:
            raise DeploymentUnavailableError("Replica")
        return [Result()]


class Response:
    """Never comes, and its cancellation goes nowhere."""

    def __aiter__(self) -> "Response":
        return self

    async def __anext__(self) -> Any:
        await asyncio.Event().wait()

    def cancel(self) -> None: ...


class Result:
    async def get_async(self) -> Any:
        return REPLICA


async def test_replicas_that_become_ready_are_known_before_a_regular_poll_is_due() -> None:
    pool = Pool(Handle(unready=1))
    polling = asyncio.create_task(pool.keep_polling())
    await asyncio.sleep(POLL_INTERVAL_S / 2)
    polling.cancel()
    with suppress(asyncio.CancelledError):
        await polling
    assert pool.status.ready == 1


async def test_polling_ends_when_told_to_whatever_is_answered_at_that_moment() -> None:
    polling = asyncio.create_task(Pool(Handle(unready=1, on_answer=lambda: polling.cancel())).keep_polling())
    await asyncio.wait([polling], timeout=POLL_INTERVAL_S)
    assert polling.cancelled()


async def test_each_poll_says_which_calls_are_still_waited_for() -> None:
    handle = Handle()
    pool = Pool(handle)
    watching = [asyncio.create_task(anext(pool.watch(make_slot(), REPLICA.model.hash))) for _ in range(3)]
    async with background(pool.keep_polling()):
        await asyncio.sleep(0)
        watching[1].cancel()
        await asyncio.sleep(1.5 * POLL_INTERVAL_S)
    first, second = handle.polls
    assert [first.has_given_up(call) for call in handle.calls] == [False, False, False]
    assert [second.has_given_up(call) for call in handle.calls] == [False, True, False]
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)


OLD, NEW = (replace(REPLICA, id=id_, model=REPLICA.model.model_copy(update={"hash": id_})) for id_ in ("old", "new"))


@dataclass
class Versions(Handle):
    """Replicas of other weights return what is not meant for them; the first `returned` calls reach such a one."""

    returned: int = 0

    def remote(self, _: Slot, call: Call) -> Any:
        self.calls.append(call)
        return Returned() if len(self.calls) <= self.returned else Response()


class Returned(Response):
    async def __anext__(self) -> Any:
        raise SlotReturned("new", "other weights")


async def calls_of(handle: Versions, *known: ReplicaStatus) -> list[Call]:
    """Return the calls that are made for a slot of the old weights, among these replicas."""
    pool = Pool(handle)
    pool.status = PoolStatus(known)
    watching = asyncio.create_task(anext(pool.watch(make_slot(), "old")))
    async with asyncio.timeout(5):
        while len(handle.calls) <= handle.returned:  # noqa: ASYNC110 - a fake has no event to wait for
            await asyncio.sleep(0)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return handle.calls


async def test_a_request_belongs_to_one_version_of_the_model() -> None:
    (call,) = await calls_of(Versions(), OLD, NEW)
    assert (call.avoid, call.model) == (frozenset({"new"}), "old")


async def test_what_a_replica_returns_does_not_go_there_again() -> None:
    first, second = await calls_of(Versions(returned=1), OLD)
    assert (first.avoid, second.avoid) == (frozenset(), frozenset({"new"}))
    assert first.model == second.model == "old"


async def test_other_weights_generate_what_their_own_can_no_longer() -> None:
    (call,) = await calls_of(Versions(), NEW)
    assert (call.avoid, call.model) == (frozenset(), None)
