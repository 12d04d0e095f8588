from pathlib import Path

import pytest

from serve_app.cli.explore import chosen_of
from serve_app.schemas import PausedEvent
from tests.cli.command import run
from tests.cli.server import START, streaming

_SIZE = {"num_inference_steps": 4, "width": 8, "height": 8, "media_type": "image/jpeg", "b64_json": "cGljdHVyZQ=="}


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("7, 9", (7, 9)),
        ("1 4", (7, 2)),
        ("2", (2,)),
        ("7 1", None),
        ("ALL", (7, 8, 9, 2)),
        ("none", ()),
        ("", None),
        ("5", None),
        ("0", None),
        ("-1", None),
        ("all 7", None),
    ],
)
def test_an_answer_names_seeds_or_else_places(answer: str, chosen: tuple[int, ...] | None) -> None:
    assert chosen_of(answer, [7, 8, 9, 2]) == chosen


@pytest.mark.parametrize("status", [404, 409])
def test_sketches_that_do_not_wait_any_more_are_said_to_be_too_late(status: int, tmp_path: Path) -> None:
    sketches = [PausedEvent(index=i, seed=seed, step=2, expires_at=0, **_SIZE) for i, seed in enumerate(START.seeds)]
    with streaming(START, *sketches, to_resume=status) as (url, _):
        done = run("explore", "a", "-n", 2, "--keep", "7", "--out", tmp_path, "--url", url)
    assert done.returncode == 1, done.stderr
    assert "too late" in done.stderr


def test_what_sketches_cannot_go_on_as_is_refused_before_there_are_any(tmp_path: Path) -> None:
    done = run("explore", "a", "--keep", "7", "--then", " ", "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "--then" in done.stderr
    assert not (tmp_path / "out").exists()
