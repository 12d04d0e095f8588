"""What the ingress knows of its replicas."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentBroadcastResponse

from serve_app.fanout.fleet import POLL_INTERVAL_S, Fleet
from tests.fakes import REPLICA


@dataclass
class Handle:
    """Broadcasts as Serve does, to a replica that becomes ready after the first `unready` polls."""

    unready: int = 0
    on_answer: Callable[[], Any] = lambda: None

    def options(self, **_: Any) -> "Handle":
        return self

    def broadcast(self, method: str) -> DeploymentBroadcastResponse:
        return DeploymentBroadcastResponse(self._results(), asyncio.get_running_loop())

    async def _results(self) -> list[Any]:
        await asyncio.sleep(0)
        self.on_answer()
        self.unready -= 1
        if self.unready >= 0:
            raise DeploymentUnavailableError("Replica")
        return [Result()]


class Result:
    async def get_async(self) -> Any:
        return REPLICA


async def test_replicas_that_become_ready_are_known_before_a_regular_poll_is_due() -> None:
    fleet = Fleet(Handle(unready=1))
    polling = asyncio.create_task(fleet.keep_polling())
    await asyncio.sleep(POLL_INTERVAL_S / 2)
    polling.cancel()
    with suppress(asyncio.CancelledError):
        await polling
    assert fleet.status.ready == 1


async def test_polling_ends_when_told_to_whatever_is_answered_at_that_moment() -> None:
    polling = asyncio.create_task(Fleet(Handle(unready=1, on_answer=lambda: polling.cancel())).keep_polling())
    await asyncio.wait([polling], timeout=POLL_INTERVAL_S)
    assert polling.cancelled()
