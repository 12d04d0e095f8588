"""What the processes of a service complain of."""

import re
from collections.abc import Iterator, Set
from pathlib import Path

import ray

_CONTROLLER = ":actor_name:ServeController\n"
"""What Ray begins such a log with."""

_RECORD = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d{4}-\d\d-\d\d ")
_START = "Traceback (most recent call last)"
_IN_GROUP = re.compile(r" +[|+] ?")
"""What stands before each line of an exception group's traceback."""


class Logs:
    """What all of Ray's processes on this machine write to their standard error from now on, Serve's logs among it."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(ray._private.worker.global_worker.node.get_logs_dir_path())
        self._read = {path: path.stat().st_size for path in self._files()}

    def tracebacks(self, killed: Set[str] = frozenset()) -> list[str]:
        """Return what each new traceback ends with, but those of Serve's controller on one of the killed actors.

        It asks each for its health, and logs that there is no answer.
        """
        return [
            f"{path.name}: {last_line(traceback)[:300]}"
            for path in self._files()
            for traceback in tracebacks(self._new(path))
            if not (_is_of_controller(path) and any(actor in traceback for actor in killed))
        ]

    def _files(self) -> list[Path]:
        return [*self._folder.glob("worker-*.err")]

    def _new(self, path: Path) -> str:
        with path.open("rb") as log:
            log.seek(self._read.get(path, 0))
            return log.read().decode(errors="replace")


def tracebacks(log: str) -> Iterator[str]:
    """Yield each traceback in a log, with what is said of the exception after it."""
    traceback: list[str] = []
    for line in [*log.splitlines(), _START]:
        starts = _START in line
        if traceback and (starts or _RECORD.match(line)):
            yield "\n".join(traceback)
            traceback = []
        if starts or traceback:
            traceback.append(_IN_GROUP.sub("", line, count=1))


def last_line(traceback: str) -> str:
    """Return the line that names the exception."""
    frames = traceback.splitlines()[1:]
    return next((line for line in frames if line and not line[0].isspace()), "a traceback without an end")


def _is_of_controller(log: Path) -> bool:
    with log.open(errors="replace") as lines:
        return any(lines.readline() == _CONTROLLER for _ in range(2))
