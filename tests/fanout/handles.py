"""Handles of replicas that answer as Serve's do, without replicas."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentBroadcastResponse

from serve_app.messages import Call, Generated, OpenCalls, Progress, Slot, SlotEvent
from tests.fakes import Answer
from tests.fanout.generations import GENERATED


@dataclass
class Handle:
    """Broadcasts as Serve does, to a replica that becomes ready after the first `unready` polls.

    Its calls are never answered, or by `error`.
    """

    unready: int = 0
    on_answer: Callable[[], Any] = lambda: None
    error: BaseException | None = None
    answers: "list[Answer]" = field(default_factory=lambda: [Answer()])
    polls: list[OpenCalls] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def options(self, **_: Any) -> "Handle":
        return self

    @property
    def stream(self) -> "Handle":
        return self

    def remote(self, _: Slot, call: Call) -> "Response":
        self.calls.append(call)
        return Response(self.error)

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
        return self.answers


@dataclass
class Response:
    """Is an error or never comes, and its cancellation goes nowhere."""

    error: BaseException | None

    def __aiter__(self) -> "Response":
        return self

    async def __anext__(self) -> Any:
        if self.error:
            raise self.error
        await asyncio.Event().wait()

    def cancel(self) -> None: ...


class Answered(Handle):
    """Answers each call with a step and a picture, and counts those that are cancelled."""

    cancelled = 0

    @property
    def generate(self) -> Any:
        return SimpleNamespace(remote=lambda *_: self)

    def remote(self, _: Slot, call: Call) -> Any:
        return self

    async def _to_object_ref(self) -> "asyncio.Future[Generated]":
        picture = asyncio.get_running_loop().create_future()
        picture.set_result(GENERATED)
        return picture

    async def __aiter__(self) -> AsyncGenerator[SlotEvent]:
        yield Progress(1)
        yield GENERATED

    def cancel(self) -> None:
        self.cancelled += 1
