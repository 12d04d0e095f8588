"""One process that imports what Ray's workers need, and is forked for each of them.

By itself a replica imports torch, diffusers and transformers for six seconds of a processor, and any other worker what
Ray and Serve use for two. Here that is done once, while Ray starts, for all workers to come, and they share its memory.
"""

import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from select import select

from serve_app.forks import worker
from serve_app.quiet import drop_harmless_warnings
from serve_app.replica.imports import ASK_NO_GPU, importing

logger = logging.getLogger(__name__)

_MODULES = (
    "serve_app.replica.loading",
    "serve_app.replica.engine",
    "serve_app.ingress.api",
    "click",
    "google.protobuf.json_format",
    "grpc",
    "jsonschema",
    "opentelemetry.sdk.trace",
    "uvicorn",
)
"""What takes longest of what replicas and the ingress import, and Ray of others.

Nothing of Ray: it reads the environment of its worker when it is imported, and forks of one would give tasks equal ids.
"""

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""A fork has only the thread that has forked: others would be missing. Replicas say later how many they take."""

_TO_ASK_S = 10.0
"""Within which a worker must have said what it asks for."""


@contextmanager
def forked_workers(modules: Iterable[str] = ()) -> Iterator[None]:
    """Have the workers forked of a Ray that this process starts while the context is open, with these imported too.

    Where that cannot be they start as ever, only slower.
    """
    with ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="parallel-sdxl-"))
        try:
            environment = held.enter_context(fork_server(Path(folder), os.environ, modules))
        except OSError as error:
            logger.warning("workers are not forked, which only makes starts slower: %s", error)
        else:
            from ray._private import ray_constants  # takes half a second, in which the other process imports

            os.environ.update(environment)
            ray_constants.SETUP_WORKER_FILENAME = worker.__file__  # a whole path: Ray joins it to its own folder's
        yield


@contextmanager
def fork_server(folder: Path, environment: Mapping[str, str], modules: Iterable[str] = ()) -> Iterator[dict[str, str]]:
    """Run the process while the context is open, and give what Ray must find in its environment to have forks of it.

    Nobody else may enter the folder, where its socket is. `environment` is what imports may read. Raises OSError.
    """
    path = str(folder / "forks")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1024)  # who asks before the imports have ended waits
        process = subprocess.Popen(  # noqa: S603, our own command
            [sys.executable, "-m", __name__, str(listener.fileno()), *modules],
            env={**environment, **_ONE_THREAD, **ASK_NO_GPU},
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,  # its end tells the process that this one has ended
            start_new_session=True,  # Ctrl-C is for this one, which needs workers until it has ended in order
        )
    with process:
        yield {worker.SOCKET: path}


@dataclass(frozen=True)
class Asked:
    """What Ray has given a worker; see `worker`. `output` are descriptors: copies of its standard output and error."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    niceness: int
    first_to_go: str
    output: Sequence[int]


def main(listener: socket.socket, modules: Iterable[str]) -> None:
    """Import, then fork whenever asked until this process's input ends. The forks go on as Ray's workers."""
    with listener:
        _import((*_MODULES, *modules))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what becomes of forks
        asked = _forked(listener)
    if asked:
        _work(asked)


def _import(modules: Iterable[str]) -> None:
    drop_harmless_warnings()
    with importing():
        for module in modules:
            with suppress(ImportError):  # a worker that needs it will say so, where it is seen
                import_module(module)


def _forked(listener: socket.socket) -> Asked | None:
    """Fork whenever asked. Return what for in each fork; and None in this process, when its input has ended."""
    while _can_fork() and sys.stdin not in select([listener, sys.stdin], [], [])[0]:
        with listener.accept()[0] as connection:
            connection.settimeout(_TO_ASK_S)
            try:
                if asked := _fork(connection):
                    return asked
            except Exception:  # whatever is wrong with one, others are forked
                logger.warning("no fork for a worker, which starts by itself", exc_info=True)
    return None


def _can_fork() -> bool:
    """Return whether forks will work: with what is installed elsewhere, imports might start threads, or import Ray."""
    if (threads := len(os.listdir("/proc/self/task"))) > 1 or "ray" in sys.modules:
        logger.warning("workers are not forked, which only makes starts slower: Ray or %d threads are here", threads)
        return False
    return True


def _fork(connection: socket.socket) -> Asked | None:
    """Return what is asked for in a fork, and None in this process. Raises if that cannot be understood, or forked."""
    _, output, _, _ = socket.recv_fds(connection, 1, len(worker.OUTPUT))
    with ExitStack() as ours:
        for copy in output:
            ours.callback(os.close, copy)
        with connection.makefile() as file:
            asked = Asked(**json.load(file), output=output)
        if os.fork() == 0:
            ours.pop_all()
            with suppress(OSError):  # nobody waits for it any more: Ray will say what becomes of it
                connection.sendall(b" ")
            return asked
    return None


def _work(asked: Asked) -> None:
    """Do what Ray's `setup_worker.py` would, and run the worker."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends workers by their groups
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for copy, descriptor in zip(asked.output, worker.OUTPUT, strict=True):
        os.dup2(copy, descriptor)
        os.close(copy)
    with suppress(OSError):  # Ray goes on without as well
        os.setpriority(os.PRIO_PROCESS, 0, asked.niceness)
        Path(worker.FIRST_TO_GO).write_text(asked.first_to_go)
    os.chdir(asked.folder)
    os.environ.clear()
    os.environ.update(asked.environment)
    from ray._private.workers.setup_worker import parser

    _, sys.argv = parser.parse_known_args(asked.arguments)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
