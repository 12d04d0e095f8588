"""`parallel-sdxl generate`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from serve_app.cli.errors import NotGenerated
from serve_app.cli.request import Ending, follow, introduce, make_folder, opening, save, warn
from serve_app.cli.service import Service
from serve_app.cli.text import say
from serve_app.cli.views import only_seen_previews, view_of
from serve_app.schemas import GridEvent, ImageEvent, StartEvent


@dataclass(frozen=True, slots=True)
class Files:
    """What is written of one request, to a folder."""

    folder: Path
    images: list[Path] = field(default_factory=list)
    grids: list[Path] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def keep(self, event: ImageEvent | GridEvent, data: bytes) -> str:
        """Write a finished file and return its name."""
        files, stem = (self.images, _stem(event)) if isinstance(event, ImageEvent) else (self.grids, "grid")
        files.append(save(self.folder, stem, event, data))
        return files[-1].name

    @contextmanager
    def told_when_cancelled(self, console: Console) -> Iterator[None]:
        """Say what is there if Ctrl-C ends the request."""
        try:
            yield
        except KeyboardInterrupt:
            say(console, f"cancelled; finished images in {self.folder}: {len(self.images)}", style="yellow")
            raise

    def sum_up(self, console: Console, ending: Ending, asked_for: int) -> None:
        """Say what is there at the end, of so many images, and what it cost."""
        warn(console, ending.warnings)
        sheet = f" and {self.grids[-1].name}" if self.grids else ""
        cost = f", {ending.gpu_seconds:.1f} s of device time" if ending.gpu_seconds else ""
        took = f"{time.monotonic() - self.started:.1f} s{cost}"
        say(console, f"{len(self.images)} of {asked_for} images{sheet} in {self.folder}, {took}")


def generate(
    service: Service,
    body: dict[str, Any],
    out: Path,
    console: Console,
    begun: Callable[[StartEvent], None] = lambda start: None,
) -> None:
    """Generate the images of a request and write each to `out` as soon as it is finished. Raises CommandError.

    `begun` is told of its start.
    """
    files = Files(out)
    make_folder(out)
    body = only_seen_previews(console, body)
    with files.told_when_cancelled(console), service.stream(body) as events:
        start = opening(events)
        begun(start)
        introduce(console, start)
        ending = follow(events, view_of(console, start, body), files.keep)
    files.sum_up(console, ending, len(start.seeds))
    if ending.missing:
        raise NotGenerated("\n".join(ending.missing))


def _stem(event: ImageEvent) -> str:
    """Return what a picture's file is called: after its seed, and those that moved it."""
    return "-".join(["seed", str(event.seed), *(f"v{one.seed}" for one in event.variations)])
