"""The replicas as the fan-out sees them: calls through one Serve handle, and what they last said of themselves."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from contextvars import Context
from functools import partial
from typing import Any

import ray
from ray import ObjectRef, exceptions, serve
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.adapters import Version
from serve_app.canvas import Canvas
from serve_app.errors import AdapterError, NotReady, ReplicaLost, SlotReturned
from serve_app.fanout.broadcast import ask_each
from serve_app.fanout.calls import Calls
from serve_app.fanout.deployed import Deployed
from serve_app.fanout.sight import PoolStatus, Sight
from serve_app.fanout.starts import Readiness, Starts
from serve_app.imaging import Pixels
from serve_app.messages import Generated, Paused, ReadAdapters, ReplicaStatus, Slot, SlotEvent
from serve_app.recipe import Embedding, Lora
from serve_app.schemas import ModelInfo

logger = logging.getLogger("ray.serve")

POLL_INTERVAL_S = 1.0
"""How often the replicas are told which calls are still waited for, and asked for their status."""

_STARTING_POLL_INTERVAL_S = 0.1
"""How often while none takes slots.

Serve calls the application running before the ingress knows, and requests may follow at once.
"""

_WAKING_S = 60.0
"""How long a call waits for a replica that Serve is to start. It does so at once, and then goes on by itself."""
_SHORTEST_PAUSE_S = 0.05
_PIXELS_TIMEOUT_S = 10.0
_CHECK_TIMEOUT_S = 20.0
"""How long a replica may take to read adapters that it does not know."""

_LOST = (
    exceptions.ActorDiedError,
    exceptions.ActorUnavailableError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.ObjectLostError,
    exceptions.TaskCancelledError,  # by Serve or Ray: we do not wait for what we cancel
)

Tell = Callable[[Set[str]], None]
"""Hears after each poll, and of each change, which replicas are lost from sight."""


def nobody(lost: Set[str]) -> None:
    """Nobody is told."""


class Pool:
    """Calls replicas. A call that is no longer awaited is cancelled on its replica: dropping the task alone would not.

    Cancellations can get lost on their way through Serve, so each poll says which calls are still waited for.

    Where there may be no replicas (`may_sleep`), whoever needs one wakes them.
    """

    def __init__(self, handle: DeploymentHandle, may_sleep: bool = False) -> None:
        self._handle = handle
        self._streams = handle.options(stream=True)
        self._calls = Calls(_own_actor())
        self._sight = Sight()
        self._tell: Tell = nobody
        self._waiting: Callable[[], int] = int
        self._model: ModelInfo | None = None
        self.starts = Starts(may_sleep)
        self._waking: asyncio.Task[None] | None = None
        self.status = PoolStatus()
        self.deployed = Deployed()
        """What Serve said of the replicas last."""

    @property
    def deployment(self) -> str:
        """The name of the replicas' deployment."""
        return str(self._handle.deployment_name)

    @property
    def any_replica(self) -> ReplicaStatus:
        """What a replica says of itself; all serve the same model. Raises NotReady where none has loaded it."""
        if not self.status.replicas:
            self._wake()
            why = "the service was asleep and starts again" if self.readiness == "waking" else "no replica is ready"
            raise NotReady(f"{why}; ask GET /health and try again", retry_after_s=self.starts.retry_after_s)
        return self.status.replicas[0]

    @property
    def model(self) -> ModelInfo:
        """The model that is served, also while no replica runs. Raises NotReady before one has loaded it."""
        return self._model or self.any_replica.model

    @property
    def known_model(self) -> ModelInfo | None:
        """The model that is served, None before a replica has loaded it. Asking wakes nobody."""
        return self._model

    @property
    def readiness(self) -> Readiness:
        """Whether there are replicas, or will be."""
        return self.starts.readiness

    async def keep_polling(self, tell: Tell = nobody, waiting: Callable[[], int] = int) -> None:
        """Keep `status` fresh, and the replicas from generating for nobody, until cancelled.

        Tell after each poll, and of each change, which replicas are lost from sight; tell the replicas how many images
        are `waiting`.
        """
        self._tell, self._waiting = tell, waiting
        while True:
            began = time.monotonic()
            try:
                await self._poll()
            except Exception:
                logger.exception("could not ask the replicas for their status")
            if self._waiting() and not self.status.replicas:
                self._wake()  # the last one went while they came
            self._look_for_sleep()
            calm = self.status.capacity or self.readiness == "asleep"
            interval = POLL_INTERVAL_S if calm else _STARTING_POLL_INTERVAL_S
            await asyncio.sleep(max(_SHORTEST_PAUSE_S, began + interval - time.monotonic()))

    async def generate(self, slot: Slot, replica: str, deadline: float) -> AsyncGenerator[SlotEvent]:
        """Yield a slot's picture alone, collected by its ObjectRef.

        Raises SlotFailed, SlotReturned or ReplicaLost.
        """
        with self._calling(self._handle.generate, slot, replica, deadline) as response:
            generated: Generated = await (await response._to_object_ref())
        yield generated  # only now: what has ended is not cancelled, which would take both sides half a millisecond

    async def stream(self, slot: Slot, replica: str, deadline: float) -> AsyncGenerator[SlotEvent]:
        """Yield a slot's events as they happen, its picture last.

        Raises SlotFailed, SlotReturned or ReplicaLost.
        """
        last: SlotEvent | None = None
        with self._calling(self._streams.stream, slot, replica, deadline) as response:
            async for event in response:
                if isinstance(event, Generated | Paused):
                    last = event
                    break
                yield event
        if last is not None:
            yield last  # only now, as above

    @contextmanager
    def _calling(self, method: Any, slot: Slot, replica: str, deadline: float) -> Iterator[Any]:
        """Call a replica's method with a slot and give its response; leaving by an error or early cancels it.

        Errors of the replica are raised as ours. One that loses or returns a slot gets no more until it answers a poll.
        """
        with self._calls.new(replica, deadline - time.monotonic()) as call:
            response = method.remote(slot, call)
            try:
                yield response
            except BaseException as error:
                # A call that found no replica raises its error again here, in place of our own cancellation.
                with suppress(Exception):
                    response.cancel()
                ours = _translated(error)
                if isinstance(ours, ReplicaLost | SlotReturned):
                    self._sight.doubt(replica)
                    self._look()
                if ours is error:
                    raise
                raise ours from error

    async def check_adapters(
        self, loras: Sequence[Lora], embeddings: Sequence[Embedding]
    ) -> Mapping[Version, str] | None:
        """Have a replica read adapters, and return the hashes of files that were named without; None if none answers.

        Then whoever generates with them will see. Raises AdapterError where they cannot be used.
        """
        response = self._handle.check_adapters.remote(loras, embeddings)
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                answer: AdapterError | ReadAdapters = await response
        except (*_LOST, TimeoutError) as error:
            logger.warning("could not ask a replica for adapters: %r", error)
            return None
        finally:
            response.cancel()
        if isinstance(answer, AdapterError):
            raise answer
        given = [*(lora.hash for lora in loras), *(embedding.hash for embedding in embeddings)]
        self._sight.has_read(answer.replica, {*filter(None, given), *answer.hashes.values()})
        self._look()
        return answer.hashes

    async def share(self, canvas: Canvas) -> Any:
        """Put a canvas into the object store, once for all slots that begin with it, and return a reference to it.

        Raises NotReady where there is no room for it.
        """
        try:
            async with asyncio.timeout(_PIXELS_TIMEOUT_S):
                return await asyncio.to_thread(ray.put, canvas)
        except (exceptions.RayError, TimeoutError):
            logger.warning("a picture to go on from could not be stored", exc_info=True)
            raise NotReady("there is no room for your picture at the moment; try again") from None

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

    async def _poll(self) -> None:
        """Ask each replica, and wait for the answers until the next poll is due; later ones count when they come."""
        try:
            answers = await ask_each(self._handle, "poll", self._calls.still_open(self._waiting()))
        except DeploymentUnavailableError:
            answers = {}
        except TimeoutError:
            # Serve is starting or busy, which says nothing of the replicas; gauges must be set again all the same.
            self._tell(self.status.lost)
            return
        self._sight.polled(answers)
        waiting = {asyncio.ensure_future(answer): actor for actor, answer in answers.items()}
        for task, actor in waiting.items():
            task.add_done_callback(partial(self._answered, actor))
        if waiting:
            _, silent = await asyncio.wait(waiting, timeout=POLL_INTERVAL_S)
            self._sight.missed(waiting[task] for task in silent)
        self._sight.note_finished()
        self._look()

    def _answered(self, actor: str, answer: "asyncio.Future[ReplicaStatus]") -> None:
        if answer.cancelled() or answer.exception() is not None:
            self._sight.failed(actor)
        else:
            self._sight.answered(actor, answer.result())
        self._look()

    def _wake(self) -> None:
        """Let Serve start a replica. Where there is none, it does for a call that waits in its handle."""
        if self.starts.may_sleep and (self._waking is None or self._waking.done()):
            # An empty context: with the request's, Serve would cancel the call together with the request.
            self._waking = asyncio.create_task(self._wait_for_any(), context=Context())
            self._look_for_sleep()

    async def _wait_for_any(self) -> None:
        response = self._handle.status.remote()
        with suppress(exceptions.RayError, RayServeException, TimeoutError):
            try:
                async with asyncio.timeout(_WAKING_S):
                    await response
            finally:
                response.cancel()

    def _look_for_sleep(self) -> None:
        waking = self._waking is not None and not self._waking.done()
        self.starts.look(ready=bool(self.status.replicas), asleep=self.deployed.asleep and not waking)

    def _look(self) -> None:
        self.status = self._sight.status()
        self.starts.ended(replica.id for replica in self.status.replicas)
        if self.status.replicas:
            self._model = self.status.replicas[0].model
        self._look_for_sleep()
        self._tell(self.status.lost)


def _own_actor() -> str | None:
    """Return the name of the actor this runs in, if it is a Serve replica."""
    try:
        return str(serve.get_replica_context().replica_id.to_full_id_str())
    except RayServeException:
        return None


def _translated(error: BaseException) -> BaseException:
    """Return Ray's error as one of ours where it has a meaning here. SlotFailed crosses with its own type."""
    if isinstance(error, _LOST) or (isinstance(error, asyncio.CancelledError) and not _told_to_end()):
        return ReplicaLost(str(error))
    return error


def _told_to_end() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
