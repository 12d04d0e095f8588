"""One process that imports what Ray's workers need, and is forked for each of them.

By itself a replica imports torch, diffusers and transformers for six seconds of a processor, and any other worker what
Ray and Serve use for two. Here that is done once, while Ray starts, for all workers to come, and they share its memory.
"""

import json
import logging
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fcntl import F_DUPFD_CLOEXEC, fcntl
from importlib import import_module
from pathlib import Path
from select import select

from serve_app.forks import worker
from serve_app.quiet import drop_harmless_warnings
from serve_app.replica.imports import importing, prepare_kernels, told_of_gpus

logger = logging.getLogger(__name__)

MODULES = (
    "serve_app.replica.loading",
    "serve_app.replica.engine",
    "serve_app.replica.demand",
    "serve_app.replica.embeddings",
    "serve_app.replica.leases",
    "serve_app.replica.lora.store",
    "serve_app.replica.scorers",
    "serve_app.ingress.api",
    "click",
    "google.protobuf.json_format",
    "grpc",
    "jsonschema",
    "opentelemetry.sdk.trace",
    "uvicorn",
)
"""What replicas import without Ray, and what takes longest of what the ingress and Ray import.

Nothing of Ray: it reads the environment of its worker when it is imported, and forks of one would give tasks equal ids.
"""

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""A fork has only the thread that has forked: others would be missing. Replicas say later how many they take."""

_JEMALLOCS = "jemalloc_bg_thd"
"""The name of the thread of an allocator that pyarrow brings, which goes on without it in forks."""

_TO_ASK_S = 10.0
"""Within which a worker must have said what it asks for."""


@contextmanager
def forked_workers(modules: Iterable[str] = (), gpus: bool = False) -> Iterator[None]:
    """Fork the workers of the Ray that this process starts while the context is open.

    They have imported these modules as well, and were told when they asked whether there are GPUs (`gpus`). Where
    workers cannot be forked they start as ever, only slower.
    """
    with ExitStack() as held:
        try:
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="parallel-sdxl-"))
            environment = held.enter_context(fork_server(Path(folder), os.environ, (*MODULES, *modules), gpus))
        except OSError as error:
            logger.warning("workers are not forked, which only makes starts slower: %s", error)
        else:
            from ray._private import ray_constants  # takes half a second, in which the other process imports

            os.environ.update(environment)
            ray_constants.SETUP_WORKER_FILENAME = worker.__file__  # a whole path: Ray joins it to its own folder's
        yield


@contextmanager
def fork_server(
    folder: Path, environment: Mapping[str, str], modules: Iterable[str], gpus: bool = False
) -> Iterator[dict[str, str]]:
    """Run a process that has imported these modules; give what Ray must find in its environment to have forks of it.

    Nobody else may enter the folder, where its socket is. `environment` is what imports may read, and `gpus` what they
    are told when they ask whether there are any. Raises OSError.
    """
    path = str(folder / "forks")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1024)  # who asks before the imports have ended waits
        passed = fcntl(listener, F_DUPFD_CLOEXEC, 3)  # the input's own number may be free where it is closed
    try:
        process = subprocess.Popen(  # noqa: S603, our own command
            # -u: not buffered, as Ray's workers
            [sys.executable, "-u", "-m", __name__, str(passed), "gpus" * gpus, *modules],
            env={**environment, **_ONE_THREAD},
            pass_fds=[passed],
            stdin=subprocess.PIPE,  # ends when this process does
            stdout=subprocess.DEVNULL,  # forks have their own; where it is closed here, they would have none
            stderr=None if sys.stderr else subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which needs workers until it has ended in order
        )
    finally:
        os.close(passed)
    with process:
        try:
            yield {worker.SOCKET: path}
        finally:
            process.kill()


@dataclass(frozen=True)
class Asked:
    """What Ray has given a worker. `output` are copies of the descriptors of its standard output and error."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    blocked: Sequence[int]
    limits: Sequence[tuple[int, tuple[int, int]]]
    niceness: int
    oom_score: str
    output: Sequence[int]


def main(listener: socket.socket, modules: Sequence[str], gpus: bool = False) -> None:
    """Import, then fork whenever asked until this process's input ends. The forks go on as Ray's workers."""
    with listener:
        if modules:
            _import(modules, gpus)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what becomes of forks
        asked = _forked(listener)
        path = Path(listener.getsockname())
    if asked:
        _work(asked)
        return
    with suppress(OSError):  # who has started this process may have ended without removing them
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def _import(modules: Iterable[str], gpus: bool) -> None:
    drop_harmless_warnings()
    with importing(), told_of_gpus(gpus):
        for module in modules:
            with suppress(Exception):  # a worker that needs it will say what is wrong with it, where it is seen
                import_module(module)
        if gpus:
            with suppress(Exception):  # the same
                prepare_kernels()


def _forked(listener: socket.socket) -> Asked | None:
    """Fork whenever asked. In each fork, return what it is for; here, return None once the input has ended."""
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
    names = [Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    threads = [name for name in names if name != _JEMALLOCS]
    if len(threads) == 1 and "ray" not in sys.modules:
        return True
    what = "Ray is here" if len(threads) == 1 else f"threads are here: {', '.join(threads)}"
    logger.warning("workers are not forked, which only makes starts slower: %s", what)
    return False


def _fork(connection: socket.socket) -> Asked | None:
    """In a fork, return what it is for; here, return None. Raises if what is asked for is wrong, or a fork fails."""
    _, output, _, _ = socket.recv_fds(connection, 1, len(worker.OUTPUT))
    with ExitStack() as ours:
        for copy in output:
            ours.callback(os.close, copy)
        with connection.makefile() as file:
            asked = Asked(**json.load(file), output=output)
        if os.fork() == 0:
            ours.pop_all()
            try:
                connection.sendall(b" ")
            except OSError:  # who has asked has gone, or has started by itself
                os._exit(0)
            return asked
    return None


def _work(asked: Asked) -> None:
    """Become as Ray has made who has asked, do what its `setup_worker.py` would, and run the worker."""
    os.setpgid(0, 0)  # Ray ends workers by their groups
    _direct(asked.output)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, asked.blocked)
    with suppress(OSError, ValueError):  # better a worker without than none
        os.setpriority(os.PRIO_PROCESS, 0, asked.niceness)
        Path(worker.OOM_SCORE).write_text(asked.oom_score)
        for limit, (soft, hard) in asked.limits:
            resource.setrlimit(limit, (soft, hard))
    os.chdir(asked.folder)
    os.environ.clear()
    os.environ.update(asked.environment)
    from ray._private.workers.setup_worker import parser

    _, sys.argv = parser.parse_known_args(asked.arguments)
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")


def _direct(output: Sequence[int]) -> None:
    """Make these descriptors this process's output, and nothing its input."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for copy, descriptor in zip(output, worker.OUTPUT, strict=True):
        os.dup2(copy, descriptor)
        os.close(copy)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[3:], bool(sys.argv[2]))
