import io

import pytest
from rich.console import Console

from serve_app.cli.views import Lines, only_seen_previews
from tests.cli.server import START


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("console", "wanted"),
    [
        (Console(file=Screen(), force_terminal=True, color_system="truecolor"), {}),
        (Console(file=Screen(), force_terminal=True, color_system=None), {"preview_every": 0}),
        (Console(file=io.StringIO(), force_terminal=True, color_system="truecolor"), {"preview_every": 0}),
    ],
)
def test_previews_that_nobody_would_see_are_not_asked_for(console: Console, wanted: dict[str, int]) -> None:
    assert only_seen_previews(console, {"prompt": "a"}) == {"prompt": "a", **wanted}
    assert only_seen_previews(console, {"prompt": "a", "preview_every": 3}) == {"prompt": "a", "preview_every": 3}


def test_lines_are_few_however_many_steps_there_are() -> None:
    console = Console(file=io.StringIO(), width=40)
    start = START.model_copy(update={"parameters": START.parameters.model_copy(update={"num_inference_steps": 100})})
    with Lines(console, start) as lines:
        for position in (3, 2, 1):
            lines.queued(1, position)
        for step in range(1, 101):
            lines.step(0, step)
        lines.done(0, "seed-7.png")
        lines.missing(1, "failed: it was not to be, as so often when there is much to be said in one line")
    assert isinstance(console.file, io.StringIO)
    assert [line[line.index("seed") :] for line in console.file.getvalue().splitlines()] == [
        "seed 8  queued, position 3",
        "seed 7  step 1/100",
        "seed 7  step 25/100",
        "seed 7  step 50/100",
        "seed 7  step 75/100",
        "seed 7  step 100/100",
        "seed 7  done: seed-7.png",
        "seed 8  failed: it was not to be, as so often when there is much to be said in one line",
    ]
