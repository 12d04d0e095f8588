"""Shows the progress of a request: bars and pictures on a terminal, plain lines elsewhere."""

import time
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from serve_app.cli.text import printable, say
from serve_app.cli.thumbnails import Thumbnails, draw_of
from serve_app.recipe import SEED_SPAN
from serve_app.schemas import StartEvent

_WIDE = 70


class View(Protocol):
    """Shows the images of one request while its context is open."""

    @property
    def shows_pictures(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def queued(self, index: int, position: int) -> None: ...
    def step(self, index: int, step: int) -> None: ...
    def picture(self, index: int, data: bytes) -> None: ...
    def paused(self, index: int, step: int) -> None: ...
    def done(self, index: int, what: str) -> None: ...
    def missing(self, index: int, why: str) -> None: ...


def only_seen_previews(console: Console, body: dict[str, Any]) -> dict[str, Any]:
    """Turn previews off in a request's body if they cannot be shown, unless it sets them itself."""
    seen = is_screen(console) and draw_of(console)
    return body if seen else {"preview_every": 0, **body}


def view_of(console: Console, start: StartEvent, body: dict[str, Any], shown_before: int = 0) -> View:
    """Return the view for a request on this console, where earlier views of this command show so many pictures."""
    if not is_screen(console):
        return Lines(console, start)
    seen = body.get("preview_every") != 0
    return Bars(console, start, Thumbnails.above(console, start, shown_before) if seen else None)


def is_screen(console: Console) -> bool:
    """Whether a person looks at this console."""
    # Not console.is_terminal: FORCE_COLOR makes it true for a CI log too.
    return console.file.isatty() and not console.is_dumb_terminal


class Bars:
    """One progress bar per image, with the pictures above if the terminal can show them."""

    def __init__(self, console: Console, start: StartEvent, thumbnails: Thumbnails | None) -> None:
        bar = 20 if console.width >= _WIDE else 10
        # Refreshed only on events: no other thread may write while a picture is drawn.
        self._progress = Progress(
            TextColumn("seed {task.fields[seed]}"),
            BarColumn(bar),
            # Leave room for the ^C that terminals echo: it would wrap and shift all lines.
            _State(
                Column(max_width=console.width - bar - len(f"seed {SEED_SPAN}  ^C "), no_wrap=True, overflow="ellipsis")
            ),
            console=console,
            auto_refresh=False,
        )
        self._steps = start.parameters.num_inference_steps
        self._tasks = [
            self._progress.add_task("", seed=seed, state=Text("waiting"), total=self._steps) for seed in start.seeds
        ]
        self._unfinished = set(range(len(start.seeds)))
        self._thumbnails = thumbnails

    def __enter__(self) -> Self:
        if self._thumbnails:
            self._thumbnails.make_room()
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        for index in self._unfinished:
            self._say(index, "not finished", "yellow")
        self._progress.stop()

    @property
    def shows_pictures(self) -> bool:
        return self._thumbnails is not None

    def queued(self, index: int, position: int) -> None:
        self._say(index, f"queued, position {position}")

    def step(self, index: int, step: int) -> None:
        self._say(index, f"step {step}/{self._steps}", completed=step)

    def picture(self, index: int, data: bytes) -> None:
        if self._thumbnails:
            self._thumbnails.show(index, data)

    def paused(self, index: int, step: int) -> None:
        self._unfinished.discard(index)
        self._say(index, f"sketch, step {step}/{self._steps}", "cyan", completed=step)

    def done(self, index: int, what: str) -> None:
        self._unfinished.discard(index)
        self._say(index, f"done: {what}", "green", completed=self._steps)

    def missing(self, index: int, why: str) -> None:
        self._unfinished.discard(index)
        self._say(index, why, "red")

    def _say(self, index: int, words: str, style: str = "", completed: int | None = None) -> None:
        self._progress.update(
            self._tasks[index], completed=completed, state=Text(printable(words), style), refresh=True
        )


class _State(ProgressColumn):
    def render(self, task: Task) -> Text:
        state: Text = task.fields["state"]
        return state


class Lines:
    """Prints a line for every quarter of an image, and one for its end."""

    def __init__(self, console: Console, start: StartEvent) -> None:
        self._console = console
        self._started = time.monotonic()
        self._seeds = start.seeds
        self._steps = start.parameters.num_inference_steps
        self._told = [-1] * len(start.seeds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def shows_pictures(self) -> bool:
        return False

    def queued(self, index: int, position: int) -> None:
        if self._told[index] < 0:
            self._told[index] = 0
            self._say(index, f"queued, position {position}")

    def step(self, index: int, step: int) -> None:
        quarter = 4 * step // self._steps
        if quarter > self._told[index]:
            self._told[index] = quarter
            self._say(index, f"step {step}/{self._steps}")

    def picture(self, index: int, data: bytes) -> None: ...

    def paused(self, index: int, step: int) -> None:
        self._say(index, f"sketch, step {step}/{self._steps}")

    def done(self, index: int, what: str) -> None:
        self._say(index, f"done: {what}")

    def missing(self, index: int, why: str) -> None:
        self._say(index, why)

    def _say(self, index: int, words: str) -> None:
        say(self._console, f"{time.monotonic() - self._started:6.2f} s  seed {self._seeds[index]}  {words}")
