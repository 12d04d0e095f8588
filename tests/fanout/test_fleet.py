"""What the ingress knows of its replicas."""

import asyncio
from contextlib import suppress
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError

from serve_app.fanout.fleet import POLL_INTERVAL_S, Fleet
from tests.fakes import REPLICA


class Answers:
    """What a broadcast gives back."""

    def __init__(self, replicas: list[Any]) -> None:
        self._replicas = replicas

    async def results_async(self, **_: Any) -> list[Any]:
        if not self._replicas:
            raise DeploymentUnavailableError("Replica")
        return self._replicas


class StartingHandle:
    """A handle of replicas of which one becomes ready after the first poll."""

    def __init__(self) -> None:
        self.polls = 0

    def options(self, **_: Any) -> "StartingHandle":
        return self

    def broadcast(self, method: str) -> Answers:
        self.polls += 1
        return Answers([REPLICA] if self.polls > 1 else [])


async def test_replicas_that_become_ready_are_known_before_a_regular_poll_is_due() -> None:
    fleet = Fleet(StartingHandle())
    polling = asyncio.create_task(fleet.keep_polling())
    await asyncio.sleep(POLL_INTERVAL_S / 2)
    polling.cancel()
    with suppress(asyncio.CancelledError):
        await polling
    assert fleet.status.ready == 1
