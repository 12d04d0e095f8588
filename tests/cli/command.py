"""The real command, as a process of its own."""

import fcntl
import multiprocessing
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import NamedTemporaryFile
from typing import Self

from serve_app.cli.__main__ import main

COMMAND = (sys.executable, "-m", "serve_app.cli")
_OF_THE_TERMINAL = re.compile(
    r"COLORTERM|KITTY_\w+|LC_TERMINAL|NO_COLOR|FORCE_COLOR|TERM|TERM_PROGRAM|TMUX|COLUMNS|LINES|PARALLEL_SDXL_\w+"
)

_SEQUENCE = re.compile(r"\x1b(\[[\d;?]*[A-Za-z]|[78])")


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without what it says of its terminal and of services."""
    return (
        {name: value for name, value in os.environ.items() if not _OF_THE_TERMINAL.fullmatch(name)}
        | {"TERM": "xterm-256color"}
        | changes
    )


# Its processes begin where the imports of the command have ended, which take longer than most commands.
_IMPORTED = multiprocessing.get_context("forkserver")
_IMPORTED.set_forkserver_preload(
    [
        "tests.cli.command",
        "httpcore2",
        *(f"serve_app.cli.{name}" for name in ("main", "generate", "explore", "reproduce", "info")),
    ]
)


def run(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose output goes to files; with an environment of its own also its imports, and to pipes."""
    words = [*COMMAND, *map(str, args)]
    if env:
        return subprocess.run(words, capture_output=True, text=True, env=environment(**env), timeout=100)
    with NamedTemporaryFile("r") as stdout, NamedTemporaryFile("r") as stderr:
        process = _IMPORTED.Process(target=_run, args=(words, os.getcwd(), stdout.name, stderr.name))
        process.start()
        process.join(100)
        code = process.exitcode
        if code is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, 100)
        process.close()
        return subprocess.CompletedProcess(words, code, stdout.read(), stderr.read())


def _run(words: list[str], folder: str, stdout: str, stderr: str) -> None:
    """Become the command, in a process that has imported it."""
    for stream, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment())
    sys.argv = words[len(COMMAND) - 1 :]
    main()


@dataclass
class Terminal:
    """A command on a terminal of its own, and what it has written there so far."""

    process: subprocess.Popen[bytes]
    _screen: int
    _written: bytes = field(default=b"")

    @classmethod
    @contextmanager
    def running(cls, *args: object, columns: int = 80, lines: int = 24, **env: str) -> Iterator[Self]:
        screen, stdio = pty.openpty()
        fcntl.ioctl(stdio, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        # Where the suite runs in a shell's background it ignores Ctrl-C, and so would what it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            [*COMMAND, *map(str, args)], stdin=stdio, stdout=stdio, stderr=stdio, env=environment(**env)
        )
        os.close(stdio)
        try:
            yield cls(process, screen)
        finally:
            process.kill()
            process.wait()
            os.close(screen)

    def read_until(self, words: str) -> None:
        """Wait for words to appear; fail if the command ends without them."""
        while words.encode() not in self._written:
            assert self._read(), f"{words!r} never came: {self.text}"

    def type(self, words: str) -> None:
        """Write a line, as a person does."""
        os.write(self._screen, f"{words}\n".encode())

    def finish(self) -> int:
        """Wait for the end and return the exit code."""
        while self._read():
            pass
        return self.process.wait()

    @property
    def text(self) -> str:
        """All that was written, without the sequences that colour, move and erase."""
        return _SEQUENCE.sub("", self._written.decode(errors="replace"))

    def _read(self) -> bytes:
        try:
            data = os.read(self._screen, 65536)
        except OSError:  # how Linux says that the other side is closed
            return b""
        self._written += data
        return data
