"""Answers that a real service rarely gives, from a server that gives only these."""

import json
from pathlib import Path

import pytest

from tests.cli.command import Terminal, run
from tests.cli.server import COMPLETED, ERROR, FAILED, IMAGE, START, answering, breaking, streaming


def problem(type: str, message: str = "words") -> bytes:
    return json.dumps({"error": {"type": type, "message": message, "param": None}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "headers", "env", "words"),
    [
        (
            401,
            problem("unauthorized"),
            {},
            {},
            "the service needs a key: set the environment variable PARALLEL_SDXL_API_KEY",
        ),
        (
            401,
            problem("unauthorized"),
            {},
            {"PARALLEL_SDXL_API_KEY": "wrong"},
            "refuses the key in PARALLEL_SDXL_API_KEY",
        ),
        (429, problem("too_many_waiting"), {"Retry-After": "12"}, {}, "the service is busy: try again in 12 s"),
        (
            503,
            problem("not_ready", "no replica is ready yet"),
            {},
            {},
            "the service is not ready: no replica is ready yet",
        ),
        (500, problem("internal", "its log says why"), {}, {}, "answers 500: its log says why"),
        (502, b"<h1>Bad Gateway</h1>", {}, {}, "502 Bad Gateway"),
        (404, b"Path '/stream' not found", {}, {}, "is not a parallel-sdxl service"),
        (200, b"<h1>Welcome</h1>", {}, {}, "is not a parallel-sdxl service"),
        (
            200,
            b"no gzip",
            {"Content-Type": "text/event-stream", "Content-Encoding": "gzip"},
            {},
            "is not a parallel-sdxl service",
        ),
    ],
)
def test_a_refusal_says_what_to_do(
    tmp_path: Path, status: int, body: bytes, headers: dict[str, str], env: dict[str, str], words: str
) -> None:
    with answering(status, body, headers=headers) as (url, _):
        done = run("generate", "a", "--out", tmp_path, "--url", url, **env)
    assert done.returncode == 3
    assert words in done.stderr
    assert "wrong" not in done.stderr, "keys are not shown"


def test_the_key_is_sent_as_a_bearer_token(tmp_path: Path) -> None:
    with streaming(START, IMAGE, COMPLETED) as (url, heard):
        run("generate", "a", "--out", tmp_path, "--url", url, PARALLEL_SDXL_API_KEY="secret")
        run("generate", "a", "--out", tmp_path, "--url", url)
    assert [headers["Authorization"] for headers in heard] == ["Bearer secret", None]


@pytest.mark.parametrize("key", ["schlüssel", "two words"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str, tmp_path: Path) -> None:
    done = run("generate", "a", "--out", tmp_path, PARALLEL_SDXL_API_KEY=key)
    assert (done.returncode, "PARALLEL_SDXL_API_KEY" in done.stderr, key in done.stderr) == (2, True, False)


def test_blanks_around_a_key_do_no_harm(tmp_path: Path) -> None:
    with streaming(START, IMAGE, COMPLETED) as (url, heard):
        run("generate", "a", "--out", tmp_path, "--url", url, PARALLEL_SDXL_API_KEY=" secret\n")
    assert [headers["Authorization"] for headers in heard] == ["Bearer secret"]


def test_a_password_in_the_url_is_not_shown(tmp_path: Path) -> None:
    done = run("generate", "a", "--out", tmp_path, "--url", "http://me:password@127.0.0.1:9")
    assert (done.returncode, "nothing answers on http://127.0.0.1:9" in done.stderr, "password" in done.stderr) == (
        3,
        True,
        False,
    )


@pytest.mark.parametrize("command", ["generate", "reproduce"])
def test_a_service_that_is_not_there_is_told_how_to_start(picture: Path, command: str, tmp_path: Path) -> None:
    done = run(command, picture, "--out", tmp_path, "--url", "http://127.0.0.1:9")
    assert done.returncode == 3
    assert "nothing answers on http://127.0.0.1:9" in done.stderr
    assert "make serve" in done.stderr


def test_an_image_that_failed_is_told_of_and_the_others_are_kept(tmp_path: Path) -> None:
    with streaming(START, FAILED, IMAGE, COMPLETED) as (url, _):
        done = run("generate", "a", "--out", tmp_path, "--url", url)
    assert done.returncode == 1
    assert (tmp_path / "seed-7.png").read_bytes() == b"picture"
    assert "1 of 2 images" in done.stdout
    assert "2.5 s of device time" in done.stdout
    assert "note: the prompt is too long" in done.stdout
    assert "note: no grid" in done.stdout
    assert "seed 8 failed: the \ufffd[2Jsky fell" in done.stderr, "and nothing from elsewhere commands the terminal"
    assert "\x1b" not in done.stdout


def test_a_failed_image_says_why_beside_its_bar(tmp_path: Path) -> None:
    with (
        streaming(START, FAILED, COMPLETED) as (url, _),
        Terminal.running("generate", "a", "--out", tmp_path, "--url", url) as terminal,
    ):
        assert terminal.finish() == 1
    assert "failed: the \ufffd[2Jsky fell" in terminal.text
    assert "not finished" in terminal.text, "the other one never ended"


def test_a_request_that_failed_as_a_whole_says_why(tmp_path: Path) -> None:
    with streaming(START, ERROR) as (url, _):
        done = run("generate", "a", "--out", tmp_path, "--url", url)
    assert (done.returncode, "its log says why" in done.stderr) == (1, True)


def test_a_stream_that_breaks_off_leaves_what_came(tmp_path: Path) -> None:
    with streaming(START, IMAGE, headers={"Content-Length": "1000000"}) as (url, _):
        done = run("generate", "a", "--out", tmp_path, "--url", url)
    assert done.returncode == 3
    assert f"lost the connection to {url}" in done.stderr
    assert (tmp_path / "seed-7.png").read_bytes() == b"picture"


def test_a_stream_that_breaks_is_gone_on_with(tmp_path: Path) -> None:
    with breaking([START, IMAGE], [IMAGE.model_copy(update={"index": 1, "seed": 8}), COMPLETED]) as (url, heard):
        done = run("generate", "a", "--out", tmp_path, "--url", url)
    assert done.returncode == 0, done.stderr
    assert heard == [("POST", "/stream", None), ("GET", "/generations/1/events", "2")]
    assert {path.name for path in tmp_path.glob("*.png")} == {"seed-7.png", "seed-8.png"}


def test_a_stream_that_the_service_has_forgotten_is_broken(tmp_path: Path) -> None:
    with breaking([START, IMAGE], [FAILED]) as (url, heard):
        done = run("generate", "a", "--out", tmp_path, "--url", url)
    assert done.returncode == 3
    assert "closed the stream before the end" in done.stderr
    assert heard[1:] == [("GET", "/generations/1/events", "2"), ("GET", "/generations/1/events", "3")]


def test_a_stream_without_its_last_event_is_not_all_there_is(tmp_path: Path) -> None:
    with streaming(START, IMAGE) as (url, _):
        done = run("generate", "a", "--out", tmp_path, "--url", url)
    assert done.returncode == 3
    assert "closed the stream before the end" in done.stderr
