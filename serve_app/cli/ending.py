"""Ends every command with a documented exit code and, if it failed, a one-line message."""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING, NoReturn, TextIO

from serve_app.cli.errors import CommandError, Exit, Unread, Unwritten

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

TRACEBACK_VARIABLE = "PARALLEL_SDXL_TRACEBACK"


def run(command: Callable[[], object]) -> NoReturn:
    """Run a command and end the process."""
    # Treat SIGTERM like Ctrl-C: cancel what is being generated and restore the terminal's cursor.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.simplefilter("ignore")  # they are for programmers, such as Pillow's about broken files
    _forget_no_size(os.environ)
    sys.stdout, sys.stderr = _stream(sys.stdout), _stream(sys.stderr)
    sys.exit(_outcome(command))


def _forget_no_size(environ: MutableMapping[str, str]) -> None:
    """Take a width or height of 0 as unknown, as terminals mean it: rich would print nothing."""
    for name in ("COLUMNS", "LINES"):
        if not environ.get(name, "").strip("0"):
            environ.pop(name, None)


def _stream(stream: TextIO) -> TextIO:
    """Return a standard stream that raises CommandErrors; unchanged if it is closed or not a plain file."""
    if not (isinstance(stream, TextIOWrapper) and isinstance(getattr(stream.buffer, "raw", stream.buffer), FileIO)):
        return stream
    # Escape with backslashes what the terminal's encoding lacks: a prompt may hold any character.
    output = BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
    return TextIOWrapper(output, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)


class _Output(FileIO):
    """The file below a standard stream. It catches OSError because each library above handles it differently."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # Send later output, Python's last flush included, to nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                raise Unread from None
            raise Unwritten(f"cannot write the output: {error.strerror}") from None


def _outcome(command: Callable[[], object]) -> int:
    try:
        code = _code(command)
        if sys.stdout:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except CommandError as error:
        _tell(str(error))
        return error.exit_code
    except Exception as error:
        _tell(_unforeseen(error))
        return Exit.UNFORESEEN
    return code


def _code(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as end:  # Typer ends with an exit code
        return int(end.code or Exit.OK)
    return Exit.OK


def _unforeseen(error: Exception) -> str:
    if os.environ.get(TRACEBACK_VARIABLE):
        return "".join(traceback.format_exception(error))
    return f"unexpected error: {error!r}. {TRACEBACK_VARIABLE}=1 shows where it happened; please report it."


def _tell(words: str) -> None:
    from rich.console import Console

    from serve_app.cli.text import say

    if words:
        with suppress(CommandError):
            say(Console(stderr=True), f"Error: {words}", style="red")
