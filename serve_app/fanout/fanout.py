"""The service behind the routes: a request fans out to slots on many replicas and comes back as one answer."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass

from serve_app import __version__
from serve_app.background import background
from serve_app.config import AppArgs
from serve_app.errors import DeadlineExceeded, GenerationFailed, InternalError, InvalidRequest, NotFound, ServiceError
from serve_app.fanout.admission import Admission
from serve_app.fanout.generation import Generate, Generation
from serve_app.fanout.generations import Generations
from serve_app.fanout.peers import Peers
from serve_app.fanout.plan import seeds_of, slots_of
from serve_app.fanout.pool import Pool
from serve_app.fanout.prompt_syntax import syntax_warning
from serve_app.imaging import Pixels, contact_sheet, encode_sheet
from serve_app.messages import ReplicaStatus, Slot
from serve_app.metrics import IngressMetrics
from serve_app.recipe import SchedulerName
from serve_app.schemas import (
    BatchResult,
    Cancelled,
    CompletedEvent,
    ErrorEvent,
    Event,
    GenerateRequest,
    Grid,
    GridEvent,
    Health,
    ModelInfo,
    NoPicture,
    Parameters,
    PreviewEvent,
    Problem,
    ReplicaCount,
    ServiceStatus,
    StartEvent,
    Timings,
)

logger = logging.getLogger("ray.serve")

_FEW_STEPS = 8
_UNSPACED: tuple[SchedulerName, ...] = ("dpmpp_2m_karras",)
"""Their timesteps follow from the noise levels, whatever the spacing."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request that has been accepted, before anything is generated."""

    id: str
    started: float
    deadline: float
    wants_grid: bool
    parameters: Parameters
    slots: list[Slot]
    warnings: list[str]


class FanOut:
    """Answers requests with the pictures of a pool of replicas."""

    def __init__(self, pool: Pool, peers: Peers, args: AppArgs, metrics: IngressMetrics) -> None:
        self._pool = pool
        self._peers = peers
        self._args = args
        self._metrics = metrics
        self._admission = Admission(args.admission.max_waiting_images)
        self._requests = Generations()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep an eye on the replicas for as long as the context is open."""
        async with background(self._pool.keep_polling()):
            yield

    def model(self) -> ModelInfo:
        """Return which weights are served. Raises NotReady."""
        return self._pool.replica.model

    def health(self) -> Health:
        ready = self._pool.status.ready
        return Health(status="ready" if ready else "starting", replicas=self._replicas(), version=__version__)

    def status(self) -> ServiceStatus:
        pool = self._pool.status
        return ServiceStatus(
            replicas=self._replicas(),
            images_in_flight=pool.active,
            images_waiting=max(pool.waiting, self._admission.waiting(pool.capacity)),
            images_per_second=round(pool.images_per_second, 3),
        )

    async def generate(self, request: GenerateRequest) -> BatchResult:
        """Generate all images and return them together. Raises ServiceError where there is none."""
        plan = self._plan(request.model_copy(update={"preview_steps": []}))
        with self._admitted(plan) as generation:
            async with self._generating(plan, generation, self._pool.generate) as unread:
                async for _ in self._followed(plan, generation):
                    pass
                unread_warnings = await unread
            grid, grid_warnings = await self._grid(plan, generation)
        return BatchResult(
            id=plan.id,
            created=int(time.time()),
            parameters=plan.parameters,
            images=[generation.images[slot.index] for slot in plan.slots],
            grid=grid,
            timings=_timings(plan, generation),
            warnings=[*plan.warnings, *unread_warnings, *grid_warnings],
        )

    @asynccontextmanager
    async def stream(self, request: GenerateRequest) -> AsyncIterator[AsyncGenerator[Event]]:
        """Open a request and give its events; leaving cancels the rest.

        Whatever refuses it raises ServiceError on the way in.
        """
        plan = self._plan(request)
        with self._admitted(plan) as generation:
            async with aclosing(self._events(plan, generation)) as events:
                yield events

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

    async def _events(self, plan: _Plan, generation: Generation) -> AsyncGenerator[Event]:
        try:
            async with self._generating(plan, generation, self._pool.watch) as unread:
                seeds = [slot.seed for slot in plan.slots]
                yield StartEvent(
                    id=plan.id, seeds=seeds, parameters=plan.parameters, warnings=[*plan.warnings, *await unread]
                )
                async with aclosing(self._followed(plan, generation)) as events:
                    async for event in self._first_preview_timed(plan, events):
                        yield event
            grid, grid_warnings = await self._grid(plan, generation)
            if grid:
                yield GridEvent(**dict(grid))
            yield CompletedEvent(id=plan.id, timings=_timings(plan, generation), warnings=grid_warnings)
        except ServiceError as error:
            yield ErrorEvent(error=Problem(type=error.type, message=error.message, param=error.param))
        except Exception:
            logger.exception("stream %s failed", plan.id)
            yield ErrorEvent(error=Problem(type=InternalError.type, message=InternalError().message))

    def _plan(self, request: GenerateRequest) -> _Plan:
        started = time.monotonic()
        replica = self._pool.replica
        slots = slots_of(request, seeds_of(request), replica.scheduler)
        recipe, output = slots[0].recipe, slots[0].output
        if recipe.scheduler not in replica.schedulers:
            advice = f"choose one of {', '.join(replica.schedulers)}"
            raise InvalidRequest(f"scheduler: {recipe.scheduler} cannot sample the served model; {advice}", "scheduler")
        return _Plan(
            id=str(uuid.uuid4()),
            started=started,
            deadline=started + self._args.request_timeout_s,
            wants_grid=request.grid,
            parameters=Parameters(**dict(recipe), **dict(output), model=replica.model),
            slots=slots,
            warnings=self._warnings(request, slots[0], replica),
        )

    def _warnings(self, request: GenerateRequest, slot: Slot, replica: ReplicaStatus) -> list[str]:
        warnings = []
        if request.negative_prompt and not request.guided:
            warnings.append("negative_prompt has no effect: guidance_scale is 1 or less")
        if "guidance_rescale" in request.model_fields_set and request.guidance_rescale and not request.guided:
            warnings.append("guidance_rescale has no effect: guidance_scale is 1 or less")
        if request.output_compression is not None and request.output_format == "png":
            warnings.append("output_compression has no effect: a PNG is lossless")
        if slot.preview_steps and not replica.has_previews:
            warnings.append("no previews: the model has no preview decoder")
        leading = replica.model.timestep_spacing == "leading" and slot.recipe.scheduler not in _UNSPACED
        if leading and slot.recipe.num_inference_steps <= _FEW_STEPS:
            warnings.append(
                f"num_inference_steps: {slot.recipe.num_inference_steps} is few for leading timesteps; a distilled "
                "model (Turbo, Lightning, Hyper) needs model.timestep_spacing: trailing, any other more steps"
            )
        prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        warnings += filter(None, (syntax_warning(field, prompt) for field, prompt in prompts.items()))
        return warnings

    @contextmanager
    def _admitted(self, plan: _Plan) -> Iterator[Generation]:
        """Put the request's images in line for as long as the context is open. Raises TooManyWaiting."""
        pool = self._pool.status
        self._admission.admit(len(plan.slots), pool.capacity, pool.images_per_second)
        generation = Generation(
            plan.slots, self._admission, lambda: self._pool.status.capacity, plan.started, self._metrics.retried
        )
        try:
            with generation.in_line(), self._requests.holding(plan.id, generation):
                self._metrics.waiting(self._admission.waiting(pool.capacity))
                yield generation
        finally:
            self._metrics.waiting(self._admission.waiting(self._pool.status.capacity))
            for slot in plan.slots:
                image = generation.images.get(slot.index)
                self._metrics.ended(image.status if image else "cancelled")

    @asynccontextmanager
    async def _generating(
        self, plan: _Plan, generation: Generation, generate: Generate
    ) -> AsyncIterator[Awaitable[list[str]]]:
        """Generate for as long as the context is open; give warnings of what the model does not read, to await.

        They are found out while it generates.
        """
        async with background(self._unread(plan.parameters)) as unread, generation.generating(generate):
            yield unread

    async def _unread(self, asked: Parameters) -> list[str]:
        try:
            ends = await asyncio.gather(self._pool.cut_off(asked.prompt), self._pool.cut_off(asked.negative_prompt))
        except Exception:
            logger.exception("could not ask the replicas what they read of a prompt")  # which takes no picture with it
            return []
        unseen = zip(("prompt", "negative_prompt"), ends, strict=True)
        return [f"{name} is longer than the model can read; it does not see: {end}" for name, end in unseen if end]

    async def _followed(self, plan: _Plan, generation: Generation) -> AsyncGenerator[Event]:
        """Yield what happens to the images.

        Raises ServiceError once all have ended without a single picture, unless all were cancelled.
        """
        async for event in generation.events(plan.deadline):
            yield event
        failures = [
            image
            for image in generation.images.values()
            if isinstance(image, NoPicture) and image.index not in generation.cancelled
        ]
        if not failures or len(failures) + len(generation.cancelled) < len(plan.slots):
            return
        if any(failure.error.type == DeadlineExceeded.type for failure in failures):
            raise DeadlineExceeded(
                f"no image was finished within {self._args.request_timeout_s:g} s; "
                "ask for fewer or smaller images, or fewer steps"
            )
        raise GenerationFailed(f"all images failed: {failures[0].error.message}")

    async def _first_preview_timed(self, plan: _Plan, events: AsyncIterator[Event]) -> AsyncGenerator[Event]:
        waiting_for_it = True
        async for event in events:
            if waiting_for_it and isinstance(event, PreviewEvent):
                waiting_for_it = False
                self._metrics.first_preview(time.monotonic() - plan.started)
            yield event

    async def _grid(self, plan: _Plan, generation: Generation) -> tuple[Grid | None, list[str]]:
        """Return the contact sheet if one is wanted and has a picture on it, and what a person should know of it."""
        if not (plan.wants_grid and generation.pixels):
            return None, []
        cells = await asyncio.gather(*[self._pool.pixels(generation.pixels.get(slot.index)) for slot in plan.slots])
        lost = [i for i in sorted(generation.pixels) if cells[i] is None]
        warnings = [
            f"the grid lacks image {i}: the replica that generated it is gone; the image itself is complete"
            for i in lost
        ]
        return await asyncio.to_thread(_sheet, cells, plan.parameters), warnings

    def _replicas(self) -> ReplicaCount:
        return ReplicaCount(ready=self._pool.status.ready, target=self._args.num_replicas)


def _sheet(cells: Sequence[Pixels | None], parameters: Parameters) -> Grid:
    pixels = contact_sheet(cells, parameters.width, parameters.height)
    height, width, _ = pixels.shape
    return Grid(
        width=width,
        height=height,
        media_type=f"image/{parameters.output_format}",
        b64_json=encode_sheet(pixels, parameters.output_format, parameters.output_compression),
    )


def _timings(plan: _Plan, generation: Generation) -> Timings:
    return generation.timings.model_copy(update={"total": time.monotonic() - plan.started})
