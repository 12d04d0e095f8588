"""One request from its first event to its last: shown while it goes on, its files kept."""

from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile

from rich.console import Console

from serve_app.cli.errors import Unavailable, Unusable
from serve_app.cli.text import say
from serve_app.cli.views import View
from serve_app.schemas import (
    CancelledEvent,
    CompletedEvent,
    ErrorEvent,
    Event,
    FailedEvent,
    GridEvent,
    ImageEvent,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    StartEvent,
)

Keep = Callable[[ImageEvent | GridEvent, bytes], str]
"""Takes a finished file and returns what to say of it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What there is to say of a request once it is over: why images are missing, and the service's last warnings."""

    missing: tuple[str, ...]
    warnings: tuple[str, ...]


def opening(events: Iterator[Event]) -> StartEvent:
    """Return the first event of a stream."""
    with suppress(StopIteration):
        if isinstance(start := next(events), StartEvent):
            return start
    raise Unavailable("the service broke off before it began")


def introduce(console: Console, start: StartEvent) -> None:
    """Say what is going to be generated."""
    p, images = start.parameters, len(start.seeds)
    say(
        console,
        f"{p.model.name}: {images} image{'s' if images > 1 else ''} of {p.width}x{p.height}, "
        f"{p.num_inference_steps} steps of {p.scheduler}, guidance {p.guidance_scale:g}",
    )
    warn(console, start.warnings)


def warn(console: Console, warnings: list[str] | tuple[str, ...]) -> None:
    """Pass the service's warnings on."""
    for warning in warnings:
        say(console, f"note: {warning}", style="yellow")


def follow(events: Iterator[Event], view: View, keep: Keep) -> Ending:
    """Follow a request to its end. Raises Unavailable where the events end before it does."""
    missing: list[str] = []
    with view:
        for event in events:
            match event:
                case QueuedEvent():
                    view.queued(event.index, event.position)
                case ProgressEvent():
                    view.step(event.index, event.step)
                case PreviewEvent():
                    view.step(event.index, event.step)
                    view.picture(event.index, b64decode(event.b64_json))
                case ImageEvent():
                    data = b64decode(event.b64_json)
                    view.done(event.index, keep(event, data))
                    view.picture(event.index, data)
                case GridEvent():
                    keep(event, b64decode(event.b64_json))
                case FailedEvent() | CancelledEvent():
                    view.missing(event.index, f"{event.type}: {event.error.message}")
                    missing.append(f"seed {event.seed} {event.type}: {event.error.message}")
                case ErrorEvent():
                    return Ending(tuple(missing or [event.error.message]), ())
                case CompletedEvent():
                    return Ending(tuple(missing), tuple(event.warnings))
    raise Unavailable("the service broke off before the end")


def make_folder(folder: Path) -> None:
    """Create a folder if it is not there, and try to write to it: before the work whose result it is for.

    Raises Unusable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise Unusable(f"cannot write to {folder}: {error.strerror}") from None


def save(folder: Path, stem: str, event: ImageEvent | GridEvent, data: bytes) -> Path:
    """Write a file and return its path.

    Its name is `stem`, and a number if another file has that name; a file with the same content stays as it is. Raises
    Unusable where it cannot be written.
    """
    suffix = event.media_type.removeprefix("image/")
    names = (f"{stem}.{suffix}" if number == 1 else f"{stem}-{number}.{suffix}" for number in count(1))
    path = folder
    try:
        for path in (folder / name for name in names):
            try:
                with path.open("xb") as file:
                    file.write(data)
            except FileExistsError:
                if path.read_bytes() != data:
                    continue
            break
    except OSError as error:
        raise Unusable(f"cannot write {path}: {error.strerror}") from None
    return path
