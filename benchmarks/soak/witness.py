"""The service with replicas and ingress replicas that tell what they hold: `build` instead of `serve_app.app.build`.

The stages around the steps of the tiny model take a little longer here, so that chance meets them.
"""

import asyncio
import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import wraps
from typing import Any
from unittest.mock import patch

from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from serve_app import app
from serve_app.config import ONLY_MODEL, AppArgs
from serve_app.errors import TooManyWaiting
from serve_app.fanout.admission import Admission
from serve_app.fanout.admission import _State as Place
from serve_app.fanout.order import Ticket
from serve_app.ingress import deployment as ingress
from serve_app.replica import deployment as replica

_STAGE_S = 0.05
_WORK = {
    "serve_app": {
        "Slot",
        "Call",
        "Job",
        "Mailbox",
        "_Lease",
        "Generation",
        "Held",
        "EventLog",
        "_SlotRecord",
        "Ticket",
    },
    "ray": {"DeploymentResponse", "DeploymentResponseGenerator"},
}
"""The classes of what a request consists of in the two processes, by package."""


class Stage(Enum):
    """Where an image was when it was cancelled."""

    ROOM = "queued in an ingress"
    QUEUE = "queued on a replica"
    PROMPT = "encoding the prompt"
    STEP = "between two steps"
    VAE = "in the VAE"
    FILE = "encoding the file"


@dataclass(frozen=True, slots=True)
class Refusal:
    """How long a refused client was told to wait, and after how long there was room for its request."""

    told_s: float
    room_s: float


@dataclass(frozen=True, slots=True)
class Census:
    """What a process holds: asyncio tasks by their coroutine, objects by their class, and what has happened to it."""

    pid: int
    holds: Counter[str]
    cancelled: Counter[Stage]
    refusals: tuple[Refusal, ...] = ()


class Replica(replica.Replica):
    """A replica that notes at which stage images are cancelled."""

    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        await super().__init__(args)
        self._cancelled: Counter[Stage] = Counter()
        engine: Any = self._engine
        for owner, stage in ((engine._models.prompts, "conditions"), (engine._models.decoder, "decode")):
            _before(owner, stage, lambda *_: time.sleep(_STAGE_S))
        _before(engine._outputs, "_image", lambda *_: time.sleep(_STAGE_S))
        _before(engine, "cancel", self._note)

    async def census(self) -> Census:
        return Census(os.getpid(), _held(), self._cancelled)

    def _note(self, job: Any) -> None:
        """Note the stage of a job that is about to be cancelled, unless it has ended."""
        from serve_app.replica.batching import JobState

        running = self._engine._running.get(job)
        if job.state.ended or job.cancel_requested:
            return
        match job.state, running:
            case JobState.WAITING, _:
                stage = Stage.QUEUE
            case JobState.DENOISED, _:
                stage = Stage.FILE
            case _, None:
                stage = Stage.PROMPT
            case _, _:
                stage = Stage.VAE if running.trajectory.done else Stage.STEP
        self._cancelled[stage] += 1


class Ingress(ingress.Ingress):
    """An ingress replica that notes when there is room again for what it has refused."""

    def __init__(self, args: AppArgs, replicas: Mapping[str, DeploymentHandle]) -> None:
        super().__init__(args, replicas)
        self._room = Room(self._service.of(ONLY_MODEL)._admission)

    async def census(self) -> Census:
        return Census(os.getpid(), _held(), self._room.cancelled, tuple(self._room.refusals))


@dataclass(frozen=True, slots=True)
class _Refused:
    """`room_at` is how many images will have left the queue, since it began, when there is room."""

    room_at: int
    told_s: float
    at: float


@dataclass
class Room:
    """Watches an ingress replica's queue: who is refused, when they could have come, and who leaves it while waiting.

    There is room for a refused request once as many images have left as were too many, whoever is given that room.
    """

    admission: Admission
    clock: Callable[[], float] = time.monotonic
    refusals: list[Refusal] = field(default_factory=list)
    cancelled: Counter[Stage] = field(default_factory=Counter)
    _refused: list[_Refused] = field(default_factory=list)
    _left: int = 0

    def __post_init__(self) -> None:
        admission: Any = self.admission
        admit, leave = admission.admit, admission.leave

        def watched_admit(images: int, capacity: int, images_per_second: float) -> None:
            try:
                admit(images, capacity, images_per_second)
            except TooManyWaiting as refusal:
                excess = self.admission.unfinished + images - capacity - self.admission.max_waiting
                self._refused.append(_Refused(self._left + excess, refusal.retry_after_s or 0, self.clock()))
                raise

        def watched_leave(ticket: Ticket, succeeded: bool = False) -> None:
            image = self.admission._images.get(ticket)
            self.cancelled[Stage.ROOM] += image is not None and image.state is Place.WAITING
            leave(ticket, succeeded)
            self._left += image is not None
            self._look()

        admission.admit, admission.leave = watched_admit, watched_leave

    def _look(self) -> None:
        fit = [refused for refused in self._refused if self._left >= refused.room_at]
        self.refusals += [Refusal(refused.told_s, self.clock() - refused.at) for refused in fit]
        self._refused = [refused for refused in self._refused if refused not in fit]


def build(args: AppArgs) -> Application:
    """Return the application with such replicas."""
    with patch.object(app, "Replica", Replica), patch.object(app, "Ingress", Ingress):
        return app.build(args)


def _before(owner: Any, method: str, first: Callable[..., None]) -> None:
    """Let something happen before each call of a method of this object."""
    call = getattr(owner, method)

    @wraps(call)
    def both(*args: Any) -> Any:
        first(*args)
        return call(*args)

    setattr(owner, method, both)


def _held() -> Counter[str]:
    """Count this loop's tasks but the caller's, and the objects that nothing but work in progress refers to."""
    gc.collect()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    names = [f"task {getattr(task.get_coro(), '__qualname__', '?')}" for task in tasks]
    kinds = [type(thing) for thing in gc.get_objects()]
    work = [kind.__name__ for kind in kinds if kind.__name__ in _WORK.get(kind.__module__.partition(".")[0], ())]
    return Counter(names + work)
