"""`parallel-sdxl explore`: sketches many images, and finishes those that a person chooses."""

import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from serve_app.cli.errors import NotGenerated, SettingRefused, Unavailable, Unusable
from serve_app.cli.generate import Files
from serve_app.cli.request import follow, introduce, make_folder, opening, save, show
from serve_app.cli.service import Service
from serve_app.cli.text import say
from serve_app.cli.views import View, is_screen, only_seen_previews, view_of
from serve_app.schemas import CompletedEvent, ErrorEvent, Event, PausedEvent, StartEvent

Sketches = dict[int, PausedEvent]
"""Those that wait, by their index."""


def explore(
    service: Service,
    body: dict[str, Any],
    keep: tuple[int, ...] | None,
    then: str | None,
    out: Path,
    console: Console,
) -> None:
    """Sketch the images of a request, finish those of the seeds `keep`, or ask which, and write these to `out`.

    `then` is what they go on as, if not as what they were begun. Raises CommandError.
    """
    if keep is None and not (is_screen(console) and sys.stdin.isatty()):
        raise Unusable("this is no terminal to ask which sketches to finish: name their seeds with --keep")
    if then is not None and not then.strip():
        raise Unusable("--then needs a prompt; without it sketches are finished as they are")
    files = Files(out)
    make_folder(out)
    body = only_seen_previews(console, body)
    with files.told_when_cancelled(console), service.stream(body) as events:
        start = opening(events)
        introduce(console, start)
        if unknown := set(keep or ()).difference(start.seeds):
            raise Unusable(f"--keep: there is no sketch of seed {min(unknown)}")
        view = view_of(console, start, body)
        sketches, missing = _sketched(events, view, len(start.seeds), files)
        if keep is None:
            if not view.shows_pictures:
                _save(sketches, out, console)
            keep = _ask(console, sketches)
        chosen = [index for index, sketch in sorted(sketches.items()) if sketch.seed in keep]
        _go_on(service, start.id, chosen, [index for index in sketches if index not in chosen], then)
        shorter = start.model_copy(update={"seeds": [start.seeds[index] for index in chosen]})
        view = view_of(console, shorter, body, shown_before=len(start.seeds))
        ending = follow(_of(events, chosen), view, files.keep)
    files.sum_up(console, ending, len(start.seeds))
    _say_saved(console, start, [sketch for index, sketch in sketches.items() if index not in chosen])
    if missing := [*missing, *ending.missing]:
        raise NotGenerated("\n".join(missing))


def _sketched(events: Iterator[Event], view: View, number: int, files: Files) -> tuple[Sketches, list[str]]:
    """Follow a request until each of its images waits or has ended; return the sketches, and why others are missing.

    Raises NotGenerated without any.
    """
    sketches: Sketches = {}
    missing: list[str] = []
    with view:
        for event in events:
            match event:
                case PausedEvent():
                    sketches[event.index] = event
                case ErrorEvent():
                    raise NotGenerated("\n".join(missing or [event.error.message]))
                case CompletedEvent():
                    raise NotGenerated("\n".join(missing))
            missing += show(event, view, files.keep)
            if sketches and len(sketches) + len(missing) == number:
                return sketches, missing
    raise Unavailable("the service closed the stream before the end")


def _save(sketches: Sketches, out: Path, console: Console) -> None:
    """Write the sketches to files, for a terminal that cannot show them."""
    for sketch in sketches.values():
        save(out, f"sketch-{sketch.seed}", sketch, b64decode(sketch.b64_json))
    say(console, f"there is no room for pictures here: the sketches are in {out}, as sketch-SEED")


def _ask(console: Console, sketches: Sketches) -> tuple[int, ...]:
    """Ask which sketches to finish, until the answer says it; return their seeds."""
    seeds = [sketch.seed for _, sketch in sorted(sketches.items())]
    while True:
        try:
            answer = console.input(f"Finish which? Seeds, or places 1 to {len(seeds)}; all or none: ")
        except EOFError:
            return ()
        chosen = chosen_of(answer, seeds)
        if chosen is not None:
            return chosen
        say(console, f"that is neither all nor none, nor a list such as {seeds[0]},{seeds[-1]} or 1,{len(seeds)}")


def chosen_of(answer: str, seeds: list[int]) -> tuple[int, ...] | None:
    """Return the seeds that an answer names: by themselves, or else by their places from 1 on. None: it does not."""
    match words := answer.replace(",", " ").lower().split():
        case ["all"]:
            return tuple(seeds)
        case ["none"]:
            return ()
    if not words or not all(word.isdecimal() for word in words):
        return None
    numbers = [int(word) for word in words]
    if set(numbers) <= set(seeds):
        return tuple(numbers)
    return tuple(seeds[n - 1] for n in numbers) if all(1 <= n <= len(seeds) for n in numbers) else None


def _go_on(service: Service, id_: str, chosen: list[int], others: list[int], then: str | None) -> None:
    """Let the chosen sketches go on, and end the others. Raises NotGenerated if it is too late."""
    try:
        if chosen and not service.resume(id_, chosen, {} if then is None else {"prompt": then}):
            raise NotGenerated("it is too late: the sketches do not wait any more")
    except SettingRefused as error:
        raise SettingRefused(error.message, "then") from None
    service.cancel(id_, others)


def _of(events: Iterator[Event], chosen: list[int]) -> Iterator[Event]:
    """Yield the events of these images, and those of none, as if there were no others."""
    for event in events:
        index = getattr(event, "index", None)
        if index is None:
            yield event
        elif index in chosen:
            yield event.model_copy(update={"index": chosen.index(index)})


def _say_saved(console: Console, start: StartEvent, left: list[PausedEvent]) -> None:
    """Say how many steps the sketches that were left would have taken."""
    steps = start.parameters.num_inference_steps
    saved = sum(steps - sketch.step for sketch in left)
    say(console, f"{saved} of {steps * len(start.seeds)} steps were not made")
