"""The answer of a generation, from its events."""

from collections.abc import Iterable
from typing import Any

from serve_app.errors import NotReady, error_of
from serve_app.readings import Part
from serve_app.schemas import (
    BatchResult,
    CancelledEvent,
    CompletedEvent,
    ErrorEvent,
    Event,
    FailedEvent,
    Grid,
    GridEvent,
    Image,
    ImageEvent,
    ImageState,
    NoPicture,
    PausedEvent,
    Picture,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    ResumedEvent,
    StartEvent,
    UnfinishedResult,
)


def answer_of(part: Part) -> BatchResult | UnfinishedResult:
    """Return the answer of a generation of which this is everything.

    Raises the ServiceError it ended with, NotReady where it has not begun.
    """
    events = [event for _, event in part.entries]
    if part.ended:
        return _result(events, part.created)
    start = next((event for event in events if isinstance(event, StartEvent)), None)
    if start is None:
        raise NotReady("the generation has not begun; try again")
    states = _states(events)
    return UnfinishedResult(
        id=start.id,
        created=part.created,
        parameters=start.parameters,
        warnings=start.warnings,
        images=[ImageState(index=i, seed=seed, status=states.get(i, "queued")) for i, seed in enumerate(start.seeds)],
    )


def _result(events: list[Event], created: int) -> BatchResult:
    start, end, images = events[0], events[-1], _images(events)
    if isinstance(end, ErrorEvent):
        raise error_of(end.error.type, end.error.message, end.error.param)
    assert isinstance(start, StartEvent)
    assert isinstance(end, CompletedEvent)
    grid = next((event for event in events if isinstance(event, GridEvent)), None)
    return BatchResult(
        id=start.id,
        created=created,
        parameters=start.parameters,
        images=[images[index] for index in sorted(images)],
        grid=Grid(**grid.model_dump(exclude={"type"})) if grid else None,
        timings=end.timings,
        warnings=[*start.warnings, *end.warnings],
    )


def _states(events: Iterable[Event]) -> dict[int, Any]:
    """Return how far each image is, by index, as the last event of each tells."""
    states: dict[int, str] = {}
    for event in events:
        match event:
            case QueuedEvent() | ResumedEvent():
                states[event.index] = "queued"
            case ProgressEvent() | PreviewEvent():
                states[event.index] = "running"
            case PausedEvent():
                states[event.index] = "paused"
            case ImageEvent() | FailedEvent() | CancelledEvent():
                states[event.index] = "succeeded" if isinstance(event, ImageEvent) else event.type
    return states


def _images(events: Iterable[Event]) -> dict[int, Image]:
    """Return the images that have ended, by index."""
    images: dict[int, Image] = {}
    for event in events:
        match event:
            case ImageEvent():
                images[event.index] = Picture(**event.model_dump(exclude={"type"}))
            case FailedEvent() | CancelledEvent():
                images[event.index] = NoPicture(
                    index=event.index, seed=event.seed, status=event.type, error=event.error
                )
    return images
