"""What a start tells of itself ends with it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.serve.handle import DeploymentBroadcastResponse

from serve_app.replica import progress


async def test_telling_ends_when_told_to_whatever_is_answered_at_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that has ended waits for it."""
    replica = SimpleNamespace(deployment="Replica", replica_id=SimpleNamespace(unique_id="abc"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: replica)
    monkeypatch.setattr(progress, "_QUICK_S", 0)
    news = progress.Progress()

    async def answers() -> list[Any]:
        telling.cancel()
        return []

    answer = DeploymentBroadcastResponse(answers(), loop=None)
    vars(news)["_ingress"] = SimpleNamespace(broadcast=lambda *_: answer)
    telling = asyncio.create_task(news.keep_telling())
    await asyncio.wait([telling], timeout=1)
    assert telling.cancelled()
