"""The command line in a terminal and without one, and what becomes of its images when it is ended."""

import signal
from base64 import b64decode
from pathlib import Path

import pytest

from tests.cli.command import Terminal
from tests.integration.conftest import Running, eventually
from tests.integration.test_cli import LONG, names, opened


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (50, 40)])
def test_a_terminal_shows_bars_and_the_pictures_as_they_form(
    app: Running, tmp_path: Path, columns: int, lines: int
) -> None:
    command = (
        "generate",
        "a red apple",
        "-n",
        2,
        "--seed",
        7,
        "--size",
        "64x64",
        "--steps",
        60,
        "--preview-every",
        1,
        "--out",
        tmp_path,
    )
    with Terminal.running(*command, "--url", app.url, columns=columns, lines=lines, COLORTERM="truecolor") as terminal:
        assert terminal.finish() == 0, terminal.text
    assert "/60" in terminal.text
    assert "done: seed-7.png" in terminal.text
    assert "done: seed-8.png" in terminal.text
    drawn = terminal.text.count("▀") / (16 * 8)
    assert drawn > 2, "previews too, not only the two finished pictures"
    assert drawn == round(drawn)


def test_a_terminal_without_true_colour_shows_bars_alone(app: Running, tmp_path: Path) -> None:
    with Terminal.running(
        "generate", "a red apple", "-n", 1, *LONG[:2], "--steps", 60, "--out", tmp_path, "--url", app.url
    ) as terminal:
        assert terminal.finish() == 0, terminal.text
    assert "/60" in terminal.text
    assert "▀" not in terminal.text


def test_ctrl_c_cancels_on_the_service_and_leaves_what_is_finished(app: Running, tmp_path: Path) -> None:
    """Eight of sixteen images are generated at once: when the first are finished, the others have not begun."""
    cancelled = app.metric("ray_psdxl_images_total", outcome="cancelled")
    command = (
        "generate",
        "a red apple",
        "-n",
        16,
        "--size",
        "64x64",
        "--steps",
        80,
        "--no-grid",
        "--out",
        tmp_path,
        "--url",
        app.url,
    )
    with Terminal.running(*command, lines=40) as terminal:
        terminal.read_until("done: seed-")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.finish() == 130, terminal.text
    finished = names(tmp_path)
    assert 1 <= len(finished) <= 8
    assert "not finished" in terminal.text
    assert f"finished images in {tmp_path}: {len(finished)}" in " ".join(terminal.text.split())
    for name in finished:
        opened(tmp_path / name).load()
    eventually(app.idle, seconds=5)
    eventually(lambda: app.metric("ray_psdxl_images_total", outcome="cancelled") - cancelled >= 8, every=1)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_being_ended_without_a_terminal_cancels_too(app: Running, tmp_path: Path, how: signal.Signals) -> None:
    with Terminal.running(
        "generate", "a red apple", "-n", 2, *LONG, "--out", tmp_path, "--url", app.url, TERM="dumb"
    ) as terminal:
        terminal.read_until("step 1/998")
        terminal.process.send_signal(how)
        assert terminal.finish() == 130, terminal.text
    assert names(tmp_path) == []


SKETCHES = ("explore", "a red apple", "-n", 4, "--seed", 7, "--size", "64x64", "--steps", 9, "--sketch", 3)
ASKS = "all or none: "


def test_sketches_are_shown_and_those_that_a_person_names_are_finished(app: Running, tmp_path: Path) -> None:
    where = ("--out", tmp_path, "--url", app.url)
    with Terminal.running(*SKETCHES, *where, lines=40, COLORTERM="truecolor") as terminal:
        terminal.read_until(ASKS)
        assert "▀" in terminal.text
        terminal.type("7 and 9")
        terminal.read_until("neither all nor none")
        terminal.type("1, 3")
        assert terminal.finish() == 0, terminal.text
    assert names(tmp_path) == ["seed-7.png", "seed-9.png"]
    assert "2 of 4 images" in terminal.text
    assert "12 of 36 steps were not made" in terminal.text
    for image in app.generate(num_images=3, seed=7, num_inference_steps=9)["images"][::2]:
        assert (tmp_path / f"seed-{image['seed']}.png").read_bytes() == b64decode(image["b64_json"])


def test_ctrl_c_ends_the_sketches_and_without_pictures_on_the_terminal_they_are_files(
    app: Running, tmp_path: Path
) -> None:
    with Terminal.running(*SKETCHES, "--out", tmp_path, "--url", app.url) as terminal:
        terminal.read_until(ASKS)
        assert names(tmp_path) == [f"sketch-{seed}.jpeg" for seed in (10, 7, 8, 9)]
        eventually(lambda: app.metric("ray_psdxl_images_paused") == 4, every=1)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.finish() == 130, terminal.text
    eventually(lambda: app.metric("ray_psdxl_images_paused") == 0, every=1)
