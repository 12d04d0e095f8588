"""What is behind the routes of one model: a request fans out to slots on many replicas and comes back as one answer."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Sequence, Set
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

from opentelemetry.context import get_current

from serve_app.background import background
from serve_app.canvas import Canvas
from serve_app.client import client
from serve_app.config import ONLY_MODEL, AppArgs
from serve_app.errors import InvalidRequest, ServiceError
from serve_app.fanout.accounts import Accounts, facts_of_end, facts_of_plan
from serve_app.fanout.adapters import AdapterCheck
from serve_app.fanout.answers import answer_of
from serve_app.fanout.event_log import EventLog
from serve_app.fanout.generation import Generation
from serve_app.fanout.generations import Generations
from serve_app.fanout.grid import NO_GRID
from serve_app.fanout.held import Held, Terms
from serve_app.fanout.plan import Plan, branch_of, plan_of, served_schedulers, warnings_of_changes
from serve_app.fanout.pool import Pool
from serve_app.fanout.request_events import completed_event, request_events
from serve_app.fanout.share import Share
from serve_app.fanout.sketches import Branch, Pauses
from serve_app.fanout.spans import write_spans
from serve_app.line import Line, current
from serve_app.messages import Slot, SlotEvent
from serve_app.metrics import Metrics
from serve_app.readings import Reading
from serve_app.recipe import Changes, Recipe
from serve_app.schemas import (
    BatchResult,
    EmbeddingFile,
    ErrorEvent,
    Event,
    GenerateRequest,
    LoraFile,
    ModelHealth,
    ModelInfo,
    ModelStatus,
    ReplicaCount,
    ServedScheduler,
)
from serve_app.side_work import side_work

logger = logging.getLogger("ray.serve")

_Generate = Callable[..., AsyncGenerator[SlotEvent]]
"""Pool.generate or Pool.stream."""


class FanOut:
    """Answers requests for one model with the pictures of its pool of replicas.

    `name` is the model's where there are several; `generations` are those of all.
    """

    def __init__(
        self, pool: Pool, generations: Generations, args: AppArgs, metrics: Metrics, name: str = ONLY_MODEL
    ) -> None:
        self._pool = pool
        self._generations = generations
        self._args = args
        self._accounts = Accounts(metrics.labelled(model=name))
        self._share = Share(pool, args)
        self._admission = self._share.admission
        self._adapters = AdapterCheck(args.adapters, pool.check_adapters, name)

    def schedulers(self) -> list[ServedScheduler]:
        """Return the schedulers that can sample the served model. Raises NotReady."""
        return served_schedulers(self._pool.status.replicas)

    async def loras(self, among: Collection[str] | None = None) -> list[LoraFile]:
        """Return the LoRAs that requests may name, and those that cannot be used.

        With `among` only those with one of these names, in whichever folders.
        """
        return await self._adapters.loras(among)

    async def embeddings(self, among: Collection[str] | None = None) -> list[EmbeddingFile]:
        """Return the embeddings that prompts may name, and those that cannot be used.

        With `among` only those with one of these names, in lower case.
        """
        return await self._adapters.embeddings(among)

    def reconfigure(self, args: AppArgs) -> None:
        """Take other settings for what is asked from now on."""
        self._args = args
        self._share.take(args)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep an eye on the replicas for as long as the context is open."""
        async with background(self._pool.keep_polling(self._look, self._share.queued)):
            yield

    def model(self) -> ModelInfo:
        """Return which weights are served. Raises NotReady."""
        return self._pool.model

    def known_model(self) -> ModelInfo | None:
        """Return which weights are served, None before they are loaded; unlike `model` it wakes no replica."""
        return self._pool.known_model

    def health(self) -> ModelHealth:
        """Return whether there are replicas, how far those are that start, and what Serve says is wrong with them."""
        said = (self._pool.starts.news, self._pool.deployed.trouble)
        return ModelHealth(
            status=self._pool.readiness, replicas=self._replicas(), message="; ".join(filter(None, said)) or None
        )

    def status(self) -> ModelStatus:
        """Return how busy the replicas are."""
        pool = self._pool.status
        return ModelStatus(
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
            self._generations.require_running()
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
        if request.pause_after is not None:
            raise InvalidRequest("pause_after: this answer has no place for sketches; use POST /stream", "pause_after")
        without_previews = request.model_copy(update={"preview_steps": []})
        calls = self._pool.stream if self._args.engine.keep_every or request.keep else self._pool.generate
        held = await self._begin(without_previews, canvas, calls, can_be_found=request.id is not None)
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
            self._generations.check_free(plan.id)
            canvas_bytes = 0 if canvas is None else canvas.nbytes
            self._generations.require_keeping([one for one in plan.slots if one.pause_after is not None], canvas_bytes)
            place.enter_context(line.open())
            line.facts |= facts_of_plan(plan)
            generation = place.enter_context(self._admitted(plan, line, canvas_bytes))
        except ServiceError as error:
            place.close()
            self._accounts.refused(error)
            raise
        keep_s = self._args.streams.keep_s if can_be_found else 0
        terms = Terms.of(request.response_format, request.on_disconnect, keep_s)
        held = Held(generation, log, self._run(plan, generation, generate, log), terms, int(time.time()), self._branch)

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
        self._generations.hold(plan.id, held)
        return held

    async def _run(self, plan: Plan, generation: Generation, generate: _Generate, log: EventLog) -> None:
        def in_time(slot: Slot, replica: str) -> AsyncGenerator[SlotEvent]:
            return generate(slot, replica, deadline=plan.deadline + generation.paused_seconds(slot.index))

        events = request_events(plan, generation, in_time, self._pool.pixels, self._accounts.first_preview)
        async with aclosing(events) as events:
            async for event in events:
                log.append(event)

    def _plan(self, request: GenerateRequest, started: float, canvas: Any, warnings: Sequence[str]) -> Plan:
        """Return the plan of a request with a reference to its canvas, and with these warnings first."""
        self._generations.require_running()
        longest_s, max_tokens = self._args.request_timeout_s, self._args.limits.max_prompt_tokens
        plan = plan_of(request, self._pool.any_replica, longest_s, max_tokens, canvas)
        return replace(plan, started=started, warnings=[*warnings, *plan.warnings])

    async def _branch(self, recipe: Recipe, step: int, changes: Changes) -> Branch:
        """Return what a paused image goes on as if some of its settings change. Raises InvalidRequest."""
        model, longest_s = self._pool.model.hash, self._args.request_timeout_s
        left = await self._adapters.named(branch_of(recipe, step, changes), model, longest_s)
        return Branch(left, [*warnings_of_changes(changes, left)])

    @contextmanager
    def _admitted(self, plan: Plan, line: Line, canvas_bytes: int) -> Iterator[Generation]:
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
            Pauses(self._args.trajectories.ttl_s, plan.best, canvas_bytes),
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
