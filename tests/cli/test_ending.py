"""How commands end on unexpected errors, and when their output cannot be written or read."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.cli.command import COMMAND, environment, run
from tests.cli.server import COMPLETED, IMAGE, START, streaming


def to_descriptor(descriptor: int, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose output goes to a descriptor, and close that."""
    command, environ = [*COMMAND, *map(str, args)], environment(**env)
    try:
        return subprocess.run(command, stdout=descriptor, stderr=subprocess.PIPE, text=True, env=environ, timeout=100)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("command", "env"),
    [
        ("--version", {}),
        ("generate", {}),
        ("info", {}),
        ("info", {"PYTHONUNBUFFERED": "1"}),
        ("--help", {"PYTHONIOENCODING": "ascii"}),
    ],
)
def test_output_that_cannot_be_written(command: str, env: dict[str, str], picture: Path, tmp_path: Path) -> None:
    with streaming(START, IMAGE, COMPLETED) as (url, _):
        arguments: dict[str, tuple[object, ...]] = {
            "info": (picture,),
            "generate": ("a", "--out", tmp_path, "--url", url),
        }
        full, environ = os.open("/dev/full", os.O_WRONLY), {"PYTHONUNBUFFERED": "", **env}
        done = to_descriptor(full, command, *arguments.get(command, ()), **environ)
    assert (done.returncode, done.stderr) == (2, "Error: cannot write the output: No space left on device\n")


@pytest.mark.parametrize("command", ["--help", "info"])
def test_output_that_nobody_reads(command: str, picture: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = to_descriptor(writer, command, *([picture] if command == "info" else []))
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("info picture.png >&-", 0),
        ("info picture.png >&- 2>&-", 0),
        ("info gone.png 2>/dev/full", 2),
        ("generate a --url http://127.0.0.1:9 2>/dev/full", 3),
        ("generate a --url http://127.0.0.1:9 2>&-", 3),
    ],
)
def test_the_code_is_the_same_where_nobody_can_be_told(line: str, code: int, picture: Path) -> None:
    shell, environ = ["sh", "-c", f"{' '.join(COMMAND)} {line}"], environment(PYTHONPATH=os.getcwd())
    done = subprocess.run(shell, cwd=picture.parent, env=environ, timeout=100)
    assert done.returncode == code


def test_what_the_encoding_has_not_is_escaped(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_itxt("parameters", "an äpple")
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=text)
    done = run("info", tmp_path / "theirs.png", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, "an \\xe4pple\n", "")


def test_what_was_not_foreseen_is_a_sentence_that_says_where_to_see_more(tmp_path: Path) -> None:
    broken = IMAGE.model_copy(update={"b64_json": "a"})
    with streaming(START, broken, COMPLETED) as (url, _):
        done = run("generate", "a", "--out", tmp_path, "--url", url)
        told = run("generate", "a", "--out", tmp_path, "--url", url, PARALLEL_SDXL_TRACEBACK="1")
    assert (done.returncode, told.returncode) == (4, 4)
    assert done.stderr.startswith("Error: unexpected error: Error(")
    assert "PARALLEL_SDXL_TRACEBACK=1" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in told.stderr
    assert "binascii.Error" in told.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_at_any_time_is_no_traceback(how: signal.Signals) -> None:
    heeded = "import os, signal; signal.signal(2, signal.default_int_handler)"  # as in a shell's foreground
    script = f"{heeded}; from serve_app.cli.ending import run; run(lambda: os.kill(os.getpid(), {int(how)}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=100)
    assert (done.returncode, done.stderr) == (130, b"")
