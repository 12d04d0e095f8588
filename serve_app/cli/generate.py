"""`parallel-sdxl generate`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from serve_app.cli.errors import NotGenerated
from serve_app.cli.request import follow, introduce, make_folder, opening, save, warn
from serve_app.cli.service import Service
from serve_app.cli.text import say
from serve_app.cli.views import only_seen_previews, view_of
from serve_app.schemas import GridEvent, ImageEvent, StartEvent


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
    started = time.monotonic()
    make_folder(out)
    body = only_seen_previews(console, body)
    images: list[Path] = []
    grids: list[Path] = []

    def keep(event: ImageEvent | GridEvent, data: bytes) -> str:
        files, stem = (images, _stem(event)) if isinstance(event, ImageEvent) else (grids, "grid")
        files.append(save(out, stem, event, data))
        return files[-1].name

    try:
        with service.stream(body) as events:
            start = opening(events)
            begun(start)
            introduce(console, start)
            ending = follow(events, view_of(console, start, body), keep)
    except KeyboardInterrupt:
        say(console, f"cancelled; finished images in {out}: {len(images)}", style="yellow")
        raise
    warn(console, ending.warnings)
    sheet = f" and {grids[-1].name}" if grids else ""
    cost = f", {ending.gpu_seconds:.1f} s of device time" if ending.gpu_seconds else ""
    took = f"{time.monotonic() - started:.1f} s{cost}"
    say(console, f"{len(images)} of {len(start.seeds)} images{sheet} in {out}, {took}")
    if ending.missing:
        raise NotGenerated("\n".join(ending.missing))


def _stem(event: ImageEvent) -> str:
    """Return what a picture's file is called: after its seed, and those that moved it."""
    return "-".join(["seed", str(event.seed), *(f"v{one.seed}" for one in event.variations)])
