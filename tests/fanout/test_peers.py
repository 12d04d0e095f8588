"""What an ingress replica asks all others, of which one may hang or die."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.handle import DeploymentBroadcastResponse

from serve_app.errors import NotReady
from serve_app.fanout.peers import Peers
from tests.fakes import Answer


@dataclass
class Handle:
    answers: list[Answer]

    def broadcast(self, method: str, *args: Any) -> DeploymentBroadcastResponse:
        async def results() -> list[Any]:
            return list(self.answers)

        return DeploymentBroadcastResponse(results(), asyncio.get_running_loop())


PeersOf = Callable[..., Peers]
HANGS, DIES = None, ActorDiedError()


@pytest.fixture
def peers_of(monkeypatch: pytest.MonkeyPatch) -> PeersOf:
    """Make the peers that give these answers."""

    def make(*values: list[int] | Exception | None) -> Peers:
        monkeypatch.setattr("serve_app.fanout.broadcast.TIMEOUT_S", 1)
        peers = Peers()
        peers.__dict__["_handle"] = Handle(
            [
                Answer(str(place), value, asyncio.Event() if value is None else None)
                for place, value in enumerate(values)
            ]
        )
        return peers

    return make


@pytest.mark.parametrize("others", [(), ([],), (HANGS,), (DIES,), (HANGS, [], DIES)])
@pytest.mark.parametrize("first", [True, False])
async def test_the_answer_of_the_one_that_holds_it_counts_whatever_the_others_do(
    peers_of: PeersOf, others: tuple[list[int] | Exception | None, ...], first: bool
) -> None:
    peers = peers_of([1, 2], *others) if first else peers_of(*others, [1, 2])
    assert await peers.cancel("id", None) == [1, 2]
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nobody waits for the rest"


async def test_where_none_holds_it_who_says_nothing_might(peers_of: PeersOf) -> None:
    assert await peers_of([], []).cancel("id", None) == []
    assert await peers_of([], DIES).cancel("id", None) == [], "what it held has died with it"
    with pytest.raises(NotReady):
        await peers_of([], HANGS).cancel("id", None)
