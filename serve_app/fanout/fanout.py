"""The service behind the routes: a request fans out to slots on many replicas and comes back as one answer."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Sequence, Set
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from opentelemetry.context import get_current

from serve_app import __version__
from serve_app.background import background
from serve_app.canvas import Canvas
from serve_app.client import client
from serve_app.config import AppArgs
from serve_app.errors import (
    InvalidRequest,
    NotFound,
    ServiceError,
    ShuttingDown,
)
from serve_app.fanout.accounts import Accounts, facts_of_end, facts_of_plan
from serve_app.fanout.adapters import AdapterCheck
from serve_app.fanout.answers import answer_of
from serve_app.fanout.event_log import EventLog
from serve_app.fanout.generation import Generation
from serve_app.fanout.grid import NO_GRID
from serve_app.fanout.held import Held, Terms
from serve_app.fanout.peers import Peers
from serve_app.fanout.plan import Plan, plan_of, served_schedulers
from serve_app.fanout.pool import Pool
from serve_app.fanout.registry import Registry
from serve_app.fanout.relay import entries_from, part_after, whole
from serve_app.fanout.request_events import completed_event, request_events
from serve_app.fanout.share import Share
from serve_app.fanout.spans import write_spans
from serve_app.line import Line, current
from serve_app.messages import SlotEvent
from serve_app.metrics import Metrics
from serve_app.readings import Found, Part, Reading
from serve_app.schemas import (
    BatchResult,
    Cancelled,
    EmbeddingFile,
    ErrorEvent,
    Event,
    GenerateRequest,
    Health,
    LoraFile,
    ModelInfo,
    ReplicaCount,
    ServedScheduler,
    ServiceStatus,
)
from serve_app.side_work import side_work

logger = logging.getLogger("ray.serve")

_DRAIN_INTERVAL_S = 0.05
_ENDING_S = 5.0
"""How long answers may take to be put together once their images have ended."""

_Generate = Callable[..., AsyncGenerator[SlotEvent]]
"""Pool.generate or Pool.stream."""


class FanOut:
    """Answers requests with the pictures of a pool of replicas."""

    def __init__(self, pool: Pool, peers: Peers, args: AppArgs, metrics: Metrics) -> None:
        self._pool = pool
        self._peers = peers
        self._args = args
        self._accounts = Accounts(metrics)
        self._share = Share(pool, args)
        self._admission = self._share.admission
        self._requests = Registry(args.streams.max_kept_bytes)
        self._draining = False
        self._refused: str | None = None
        self._adapters = AdapterCheck(args.adapters, pool.check_adapters)

    def schedulers(self) -> list[ServedScheduler]:
        """Return the schedulers that can sample the served model. Raises NotReady."""
        return served_schedulers(self._pool.status.replicas)

    async def loras(self) -> list[LoraFile]:
        """Return the LoRAs that requests may name, and those that cannot be used."""
        return await self._adapters.loras()

    async def embeddings(self, among: Collection[str] | None = None) -> list[EmbeddingFile]:
        """Return the embeddings that prompts may name, and those that cannot be used.

        With `among` only those with one of these names, in lower case.
        """
        return await self._adapters.embeddings(among)

    def reconfigure(self, args: AppArgs) -> None:
        """Take other settings for what is asked from now on."""
        self._args, self._refused = args, None
        self._requests.max_bytes = args.streams.max_kept_bytes
        self._share.take(args)

    def refuse_settings(self, why: str) -> None:
        """Say in the health that changed settings could not be used."""
        self._refused = f"the changed settings were refused, those before still hold: {why}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep an eye on the replicas for as long as the context is open."""
        async with (
            background(self._pool.keep_polling(self._look, self._share.queued)),
            background(self._pool.keep_watching()),
        ):
            try:
                yield
            finally:
                await self._requests.close()

    def model(self) -> ModelInfo:
        """Return which weights are served. Raises NotReady."""
        return self._pool.model

    def health(self) -> Health:
        return Health(
            status="stopping" if self._draining else self._pool.readiness,
            replicas=self._replicas(),
            version=__version__,
            message=self._refused or self._pool.deployed.trouble,
        )

    def status(self) -> ServiceStatus:
        pool = self._pool.status
        return ServiceStatus(
            replicas=self._replicas(),
            images_in_flight=pool.active,
            images_waiting=max(pool.waiting, self._admission.waiting()),
            images_per_second=round(pool.images_per_second, 3),
        )

    def require_room(self, images: int) -> None:
        """Raise what refuses a request for so many images whatever it is of: ShuttingDown, NotReady, TooManyWaiting.

        For those who must do something costly before they have the request; it may be refused even so.
        """
        try:
            self._require_running()
            _ = self._pool.any_replica
            self._share.require_place(images)
        except ServiceError as error:
            self._accounts.refused(error)
            raise

    async def generate(self, request: GenerateRequest, canvas: Canvas | None = None) -> BatchResult:
        """Generate all images and return them together. Raises ServiceError where there is none."""
        if request.id is None and request.on_disconnect != "cancel":
            message = "on_disconnect: this answer tells the id too late; choose an id, or use the stream"
            raise InvalidRequest(message, "on_disconnect")
        without_previews = request.model_copy(update={"preview_steps": []})
        held = await self._begin(without_previews, canvas, self._pool.generate, can_be_found=request.id is not None)
        async with held.reading():
            await asyncio.wait([held.task])
        answer = answer_of(held.part())
        assert isinstance(answer, BatchResult)
        return answer

    @asynccontextmanager
    async def stream(
        self, request: GenerateRequest, canvas: Canvas | None = None
    ) -> AsyncIterator[AsyncGenerator[Event]]:
        """Open a request and give its events; leaving cancels the rest.

        Whatever refuses it raises ServiceError on the way in.
        """
        held = await self._begin(request, canvas, self._pool.stream, can_be_found=False)
        async with held.read() as reading:
            yield (entry.event async for entry in reading.entries)

    @asynccontextmanager
    async def open(self, request: GenerateRequest, canvas: Canvas | None = None) -> AsyncIterator[Reading]:
        """Open a request as `stream` does, for a client that may come back; leaving does what it asked for."""
        held = await self._begin(request, canvas, self._pool.stream, can_be_found=True)
        async with held.read() as reading:
            yield reading

    @asynccontextmanager
    async def resume(self, id: str, after: int) -> AsyncIterator[Reading]:
        """Read a generation that was opened before from after an event, 0 for the beginning.

        Any ingress replica may hold it. Raises NotFound, NotReady, InvalidRequest on the way in.
        """
        if held := self._requests.get(id):
            _require_event(after, held.log.last)
            async with held.read(after) as reading:
                yield reading
        else:
            part = await part_after(self._peers, id, after)
            _require_event(after, part.last)
            async with aclosing(entries_from(self._peers, id, part, after)) as entries:
                yield Reading(entries, part.response_format)

    async def find(self, id: str) -> Found:
        """Return the answer of a generation so far. Raises the ServiceError it ended with, NotFound, NotReady."""
        held = self._requests.get(id)
        part = held.part() if held else await whole(self._peers, id)
        return Found(answer_of(part), part.response_format)

    async def cancel(self, id: str, index: int | None = None) -> Cancelled:
        """Cancel one image of a request, or with None all that have not ended.

        Any ingress replica may hold the request. Raises NotFound, NotReady.
        """
        cancelled = self.cancel_here(id, index) or await self._peers.cancel(id, index)
        if not cancelled:
            raise NotFound("there is nothing to cancel by this name: it is unknown or has finished")
        return Cancelled(id=id, cancelled=cancelled)

    def cancel_here(self, id: str, index: int | None) -> list[int]:
        """Cancel as `cancel` does, if this ingress replica holds the request; return what is cancelled, if anything."""
        return self._requests.cancel(id, index)

    async def next_part_here(self, id: str, after: int, wait_s: float) -> Part | None:
        """Return what a generation has after an event, waiting for it so long, if this ingress replica holds it."""
        held = self._requests.get(id)
        return await held.next_part(after, wait_s) if held else None

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, and return when the running ones have ended.

        What has not after `grace_s` seconds fails as `shutting_down`; the images finished by then are returned, with
        their grid if it is made within some seconds.
        """
        self._draining = True
        if not await self._ended(grace_s):
            for held in self._requests.running:
                held.shut_down()
            if not await self._ended(_ENDING_S):
                await self._requests.close()

    async def _ended(self, seconds: float) -> bool:
        """Wait at most so long until no request runs, and return whether none does."""
        until = time.monotonic() + seconds
        while self._requests.running and time.monotonic() < until:  # noqa: ASYNC110 - once in a process's life
            await asyncio.sleep(_DRAIN_INTERVAL_S)
        return not self._requests.running

    async def _begin(
        self, request: GenerateRequest, canvas: Canvas | None, generate: _Generate, *, can_be_found: bool
    ) -> Held:
        """Start to generate a request in a task of its own; what can be found is kept after its end.

        Raises ServiceError where it is refused.
        """
        started, place, line, log, span = time.monotonic(), ExitStack(), current(), EventLog(), get_current()
        try:
            shared = None if canvas is None else await self._pool.share(canvas)
            longest_s, model = self._args.request_timeout_s, self._pool.any_replica.model
            request = await self._adapters.named(request, model.hash, min(request.timeout_s or longest_s, longest_s))
            plan = self._plan(request, started, shared, () if canvas is None else canvas.warnings)
            self._requests.check_free(plan.id)
            place.enter_context(line.open())
            line.facts |= facts_of_plan(plan)
            generation = place.enter_context(self._admitted(plan, line))
        except ServiceError as error:
            place.close()
            self._accounts.refused(error)
            raise
        keep_s = self._args.streams.keep_s if can_be_found else 0
        terms = Terms.of(request.response_format, request.on_disconnect, keep_s)
        held = Held(generation, log, self._run(plan, generation, generate, log), terms, int(time.time()))

        def conclude(_: asyncio.Task[None]) -> None:
            if log.ended and isinstance(last := log.after(log.last)[-1].event, ErrorEvent):
                line.facts["error"] = last.error.type
            place.close()
            with side_work("the spans of a generation could not be written"):
                write_spans(plan, generation, span)
            no_grid = [NO_GRID] if plan.wants_grid and generation.pixels else []
            end = completed_event(plan, generation, no_grid)
            log.conclude(plan.start_event(), generation.images.values(), end)

        # Not in the task itself: one that is cancelled before its first step never runs.
        held.task.add_done_callback(conclude)
        self._requests.hold(plan.id, held)
        return held

    async def _run(self, plan: Plan, generation: Generation, generate: _Generate, log: EventLog) -> None:
        generate = partial(generate, deadline=plan.deadline)
        events = request_events(plan, generation, generate, self._pool.pixels, self._accounts.first_preview)
        async with aclosing(events) as events:
            async for event in events:
                log.append(event)

    def _plan(self, request: GenerateRequest, started: float, canvas: Any, warnings: Sequence[str]) -> Plan:
        """Return the plan of a request with a reference to its canvas, and with these warnings first."""
        self._require_running()
        longest_s, max_tokens = self._args.request_timeout_s, self._args.limits.max_prompt_tokens
        plan = plan_of(request, self._pool.any_replica, longest_s, max_tokens, canvas)
        return replace(plan, started=started, warnings=[*warnings, *plan.warnings])

    def _require_running(self) -> None:
        if self._draining:
            raise ShuttingDown

    @contextmanager
    def _admitted(self, plan: Plan, line: Line) -> Iterator[Generation]:
        """Put the request's images in the queue for as long as the context is open. Raises TooManyWaiting."""
        self._share.require_place(len(plan.slots))
        generation = Generation(
            plan.slots,
            plan.parameters.model,
            self._admission,
            self._share.dispatcher.turn,
            plan.started,
            self._accounts.again,
            name := client.get(),
        )
        try:
            with generation.admitted():
                self._show()
                yield generation
        finally:
            self._show()
            self._accounts.ended(generation, name)
            line.facts |= facts_of_end(generation)

    def _look(self, lost: Set[str]) -> None:
        """The replicas have told news, and some may be lost."""
        self._share.take(self._args)
        self._share.dispatcher.look(lost)
        self._show()

    def _show(self) -> None:
        count = self._replicas()
        self._accounts.look(self._admission.waiting(), count.ready, count.target)

    def _replicas(self) -> ReplicaCount:
        target = self._pool.deployed.replicas
        return ReplicaCount(ready=self._pool.status.ready, target=self._args.num_replicas if target is None else target)


def _require_event(number: int, last: int) -> None:
    """Raise InvalidRequest if a generation has had no such event. A reader would wait for it, or get nothing at all."""
    if number > last:
        raise InvalidRequest(f"Last-Event-ID: {number} is above the last event so far, {last}", "Last-Event-ID")
