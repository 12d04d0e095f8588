"""All that is told of one request: its start, what happens to its images, its grid, and its end."""

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from serve_app.errors import DeadlineExceeded, GenerationFailed, InternalError, ServiceError, ShuttingDown
from serve_app.fanout.attempts import Generate
from serve_app.fanout.events import model_warnings
from serve_app.fanout.generation import Generation
from serve_app.fanout.grid import grid_of
from serve_app.fanout.plan import Plan
from serve_app.fanout.states import SlotState
from serve_app.imaging import Pixels
from serve_app.schemas import CompletedEvent, ErrorEvent, Event, GridEvent, PausedEvent, PreviewEvent, Problem

logger = logging.getLogger("ray.serve")


async def request_events(
    plan: Plan,
    generation: Generation,
    generate: Generate,
    pixels: Callable[[Any], Awaitable[Pixels | None]],
    on_first_preview: Callable[[float], None],
) -> AsyncGenerator[Event]:
    """Generate the images of an admitted request and yield its events; the last tells its end or its error.

    `on_first_preview` is told the seconds since the request came, of a preview or a sketch.
    """
    try:
        async with generation.generating(generate):
            yield plan.start_event()
            async with aclosing(_slot_events(plan, generation)) as events:
                async for event in _observe_first_preview(plan, events, on_first_preview):
                    yield event
        grid, grid_warnings = await grid_of(plan, generation, pixels)
        if grid:
            yield GridEvent(**dict(grid))
        yield completed_event(plan, generation, grid_warnings)
    except ServiceError as error:
        yield ErrorEvent(error=Problem(type=error.type, message=error.message, param=error.param))
    except Exception:
        logger.exception("generation %s failed", plan.id)
        yield ErrorEvent(error=Problem(type=InternalError.type, message=InternalError().message))


def completed_event(plan: Plan, generation: Generation, warnings: Sequence[str]) -> CompletedEvent:
    """Return the last event of a request as of now, with these warnings after those of its images."""
    return CompletedEvent(
        id=plan.id,
        timings=generation.timings.model_copy(update={"total": time.monotonic() - plan.started}),
        warnings=[*dict.fromkeys(generation.warnings), *model_warnings(generation.images.values()), *warnings],
    )


async def _slot_events(plan: Plan, generation: Generation) -> AsyncGenerator[Event]:
    """Yield what happens to the images.

    Raises ServiceError once all have ended without a single picture, unless all were cancelled.
    """
    async for event in generation.events(plan.deadline):
        yield event
    _require_picture(plan, generation)


def _require_picture(plan: Plan, generation: Generation) -> None:
    """Raise ServiceError if there is no picture, unless all images were cancelled."""
    failures = generation.failures
    if not failures or SlotState.SUCCEEDED in generation.slot_states:
        return
    if any(failure.error.type == ShuttingDown.type for failure in failures):
        raise ShuttingDown
    if any(failure.error.type == DeadlineExceeded.type for failure in failures):
        raise DeadlineExceeded(
            f"no image was finished within {plan.timeout_s:g} s; ask for fewer or smaller images, or fewer steps"
        )
    raise GenerationFailed(f"all images failed: {failures[0].error.message}")


async def _observe_first_preview(
    plan: Plan, events: AsyncIterator[Event], on_first_preview: Callable[[float], None]
) -> AsyncGenerator[Event]:
    still_to_come = True
    async for event in events:
        if still_to_come and isinstance(event, PreviewEvent | PausedEvent):
            still_to_come = False
            on_first_preview(time.monotonic() - plan.started)
        yield event
