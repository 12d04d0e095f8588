"""The replicas as the fan-out sees them: calls through one Serve handle, and what they last said of themselves."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from ray import ObjectRef, exceptions
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.errors import NotReady, ReplicaLost, SlotCancelled, SlotReturned
from serve_app.fanout.broadcast import broadcast
from serve_app.fanout.calls import Calls
from serve_app.imaging import Pixels
from serve_app.messages import Generated, ReplicaStatus, Slot, SlotEvent

logger = logging.getLogger("ray.serve")

POLL_INTERVAL_S = 1.0
"""How often the replicas are told which calls are still waited for, and asked for their status."""

_STARTING_POLL_INTERVAL_S = 0.1
"""How often while none is ready.

Serve calls the application running before the ingress knows, and requests may follow at once.
"""

_RETURNED_PAUSE_S = 0.1
"""How long to wait before a slot that was returned is sent again."""

_PIXELS_TIMEOUT_S = 10.0
_RATE_WINDOW_S = 60.0
_LONGEST_LOWER_CASE = 1.5
"""By how much lower-casing, which CLIP's tokenizers do first, can lengthen a text in bytes."""

_LOST = (
    exceptions.ActorDiedError,
    exceptions.ActorUnavailableError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
)


_Attempt = Callable[[Slot, frozenset[str], str | None], AsyncGenerator[SlotEvent]]


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What all ready replicas said at the last poll."""

    replicas: tuple[ReplicaStatus, ...] = ()
    images_per_second: float = 0.0

    @property
    def ready(self) -> int:
        return len(self.replicas)

    @property
    def capacity(self) -> int:
        """How many images can be generated at once."""
        return sum(r.capacity for r in self.replicas)

    @property
    def active(self) -> int:
        return sum(r.active for r in self.replicas)

    @property
    def waiting(self) -> int:
        return sum(r.waiting for r in self.replicas)


class Pool:
    """Calls replicas. A call that is no longer awaited is cancelled on its replica: dropping the task alone would not.

    Cancellations can get lost on their way through Serve, so each poll says which calls are still waited for.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._streams = handle.options(stream=True)
        self._calls = Calls()
        self._finished: deque[tuple[float, dict[str, int]]] = deque()
        self.status = PoolStatus()

    @property
    def replica(self) -> ReplicaStatus:
        """What a replica says of itself; all serve the same model. Raises NotReady before one has loaded it."""
        if not self.status.replicas:
            raise NotReady("no replica is ready; ask GET /health and try again")
        return self.status.replicas[0]

    async def keep_polling(self) -> None:
        """Keep `status` fresh, and the replicas from generating for nobody, until cancelled."""
        while True:
            try:
                self.status = await self._poll()
            except Exception:
                logger.exception("could not ask the replicas for their status")
            await asyncio.sleep(POLL_INTERVAL_S if self.status.ready else _STARTING_POLL_INTERVAL_S)

    def generate(self, slot: Slot, model: str) -> AsyncGenerator[SlotEvent]:
        """Yield a slot's picture alone, collected by its ObjectRef. Raises SlotFailed, SlotCancelled or ReplicaLost.

        Weights with the hash `model` generate it; any do where no replica has these.
        """
        return self._until_kept(self._generate, slot, model)

    def watch(self, slot: Slot, model: str) -> AsyncGenerator[SlotEvent]:
        """Yield a slot's events as they happen, its picture last; else as `generate`."""
        return self._until_kept(self._watch, slot, model)

    async def _until_kept(self, once: _Attempt, slot: Slot, model: str) -> AsyncGenerator[SlotEvent]:
        """Send a slot to replica after replica, until one does not return it."""
        returned: frozenset[str] = frozenset()
        while True:
            try:
                async with aclosing(once(slot, *self._terms(returned, model))) as events:
                    async for event in events:
                        yield event
                return
            except SlotReturned as error:
                returned |= {error.replica}
            # What is known of the replicas is up to a second old: they may all return it meanwhile.
            await asyncio.sleep(_RETURNED_PAUSE_S)

    def _terms(self, returned: frozenset[str], model: str) -> tuple[frozenset[str], str | None]:
        """Return which replicas a slot must not go to, and which weights the one that takes it must have."""
        others = frozenset(r.id for r in self.status.replicas if r.model.hash != model)
        if len(others) == self.status.ready:
            return frozenset(), None
        return returned | others, model

    async def _generate(self, slot: Slot, avoid: frozenset[str], model: str | None) -> AsyncGenerator[SlotEvent]:
        with self._calling(self._handle.generate, slot, avoid, model) as response:
            generated: Generated = await (await response._to_object_ref())
            yield generated

    async def _watch(self, slot: Slot, avoid: frozenset[str], model: str | None) -> AsyncGenerator[SlotEvent]:
        with self._calling(self._streams.stream, slot, avoid, model) as response:
            async for event in response:
                yield event

    @contextmanager
    def _calling(self, method: Any, slot: Slot, avoid: frozenset[str], model: str | None) -> Iterator[Any]:
        """Call a replica's method with a slot and give its response; leaving cancels it.

        Errors of the replica are raised as ours.
        """
        with self._calls.new(avoid, model) as call:
            response = method.remote(slot, call)
            try:
                yield response
            except Exception as error:
                raise _translated(error) from error
            finally:
                response.cancel()

    async def pixels(self, ref: "ObjectRef[Pixels] | None") -> Pixels | None:
        """Return the pixels a replica has left behind, or None where there are none or they were lost with it."""
        if ref is None:
            return None
        try:
            async with asyncio.timeout(_PIXELS_TIMEOUT_S):
                pixels: Pixels = await ref
                return pixels
        except (exceptions.RayError, TimeoutError):
            logger.warning("the pixels of an image were lost", exc_info=True)
            return None

    async def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that the text encoders do not see.

        It is empty if they see it all or no replica answers.
        """
        room = min((replica.prompt_tokens for replica in self.status.replicas), default=0)
        if len(prompt.encode()) * _LONGEST_LOWER_CASE <= room:
            return ""  # a token has at least a byte
        try:
            answers = await broadcast(self._handle, "cut_off", prompt)
        except (DeploymentUnavailableError, TimeoutError):
            return ""
        return str(answers[0]) if answers else ""

    async def _poll(self) -> PoolStatus:
        try:
            replicas: tuple[ReplicaStatus, ...] = tuple(await broadcast(self._handle, "poll", self._calls.still_open()))
        except DeploymentUnavailableError:
            return PoolStatus()
        except TimeoutError:
            # One replica hangs, and Serve says nothing of the others. Its health check will end it; until then keep the
            # last status.
            return self.status
        self._finished.append((time.monotonic(), {r.id: r.finished for r in replicas}))
        return PoolStatus(replicas, self._rate())

    def _rate(self) -> float:
        """Return the images per second of the replicas that were there at both ends of the window."""
        now, finished = self._finished[-1]
        while now - self._finished[0][0] > _RATE_WINDOW_S:
            self._finished.popleft()
        then, before = self._finished[0]
        return (
            sum(finished[id_] - before[id_] for id_ in finished.keys() & before.keys()) / (now - then)
            if now > then
            else 0.0
        )


def _translated(error: Exception) -> Exception:
    """Return Ray's error as one of ours where it has a meaning here. SlotFailed crosses with its own type."""
    if isinstance(error, _LOST):
        return ReplicaLost(str(error))
    if isinstance(error, exceptions.TaskCancelledError):
        return SlotCancelled()
    return error
