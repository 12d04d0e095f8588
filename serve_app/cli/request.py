"""Follows one request from its first event to its last: shows progress and saves files."""

from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from rich.console import Console

from serve_app.cli.errors import Unavailable, Unusable
from serve_app.cli.text import say
from serve_app.cli.views import View
from serve_app.schemas import (
    NOT_KEPT,
    CancelledEvent,
    CompletedEvent,
    ErrorEvent,
    Event,
    FailedEvent,
    GridEvent,
    ImageEvent,
    PausedEvent,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    StartEvent,
)

Keep = Callable[[ImageEvent | GridEvent, bytes], str]
"""Takes a finished file and returns the text to show for it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a request: why images are missing, the service's last warnings, and what it cost.

    `gpu_seconds` is 0 where the service does not say.
    """

    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    gpu_seconds: float = 0.0


def opening(events: Iterator[Event]) -> StartEvent:
    """Return the first event of a stream. Raises Unavailable if it is no start event."""
    start = next(events, None)
    if not isinstance(start, StartEvent):
        raise Unavailable("the service closed the stream before it began")
    return start


def introduce(console: Console, start: StartEvent) -> None:
    """Print what will be generated."""
    p, images = start.parameters, len(start.seeds)
    schedule = f" ({p.sigma_schedule})" if p.sigma_schedule else ""
    say(
        console,
        f"{p.model.name}: {images} image{'s' if images > 1 else ''} of {p.width}x{p.height}, "
        f"{p.num_inference_steps} steps of {p.scheduler}{schedule}, guidance {p.guidance_scale:g}",
    )
    warn(console, start.warnings)


def warn(console: Console, warnings: list[str] | tuple[str, ...]) -> None:
    """Print the service's warnings."""
    for warning in warnings:
        say(console, f"note: {warning}", style="yellow")


def follow(events: Iterator[Event], view: View, keep: Keep) -> Ending:
    """Follow a request to its end. Raises Unavailable if the stream ends early."""
    missing: list[str] = []
    with view:
        for event in events:
            match event:
                case ErrorEvent():
                    return Ending(tuple(missing or [event.error.message]), ())
                case CompletedEvent():
                    return Ending(tuple(missing), tuple(event.warnings), event.timings.gpu)
            missing += show(event, view, keep)
    raise Unavailable("the service closed the stream before the end")


def show(event: Event, view: View, keep: Keep) -> list[str]:
    """Show one event, and keep its file if it has one; return why its image is missing, if it is."""
    match event:
        case QueuedEvent():
            view.queued(event.index, event.position)
        case ProgressEvent():
            view.step(event.index, event.step)
        case PreviewEvent():
            view.step(event.index, event.step)
            view.picture(event.index, b64decode(event.b64_json))
        case PausedEvent():
            view.paused(event.index, event.step)
            view.picture(event.index, b64decode(event.b64_json))
        case ImageEvent():
            data = b64decode(event.b64_json)
            view.done(event.index, keep(event, data))
            view.picture(event.index, data)
        case GridEvent():
            keep(event, b64decode(event.b64_json))
        case CancelledEvent() if event.error.type == NOT_KEPT:
            view.missing(event.index, "not kept")
        case FailedEvent() | CancelledEvent():
            view.missing(event.index, f"{event.type}: {event.error.message}")
            return [f"seed {event.seed} {event.type}: {event.error.message}"]
    return []


def make_folder(folder: Path) -> None:
    """Create a folder if needed and check that it is writable, before any work. Raises Unusable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise Unusable(f"cannot write to {folder}: {error.strerror}") from None


def save(folder: Path, stem: str, event: ImageEvent | GridEvent | PausedEvent, data: bytes) -> Path:
    """Write a file and return its path. Raises Unusable if that fails.

    The name is `stem`, with a number if a file with other content has that name.
    """
    suffix = event.media_type.removeprefix("image/")
    path, number = folder / f"{stem}.{suffix}", 1
    try:
        while not _holds(path, data):
            number += 1
            path = folder / f"{stem}-{number}.{suffix}"
    except OSError as error:
        raise Unusable(f"cannot write {path}: {error.strerror}") from None
    return path


def _holds(path: Path, data: bytes) -> bool:
    """Write data to a new file; if the file exists, return whether it holds this data."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return path.read_bytes() == data
    return True
