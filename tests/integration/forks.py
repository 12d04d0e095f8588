"""Ray's workers, forked from one process that has imported what all of them need.

By itself a replica imports torch and diffusers for some six seconds of the processor, and any other worker Ray and
Serve for two or three: the tests start dozens. Ray runs this file where it would run its own `setup_worker.py`, with
the same arguments; nothing else differs.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serve_app.replica.imports import import_all

SOCKET = "PARALLEL_SDXL_TESTS_FORKS"
"""The environment's name for the path of the socket at which forks are asked for."""
FORKS = __file__
"""What Ray must run where it would run its own `setup_worker.py`."""
_OUTPUT = (1, 2)
_OURS = ("serve_app.ingress.api", "serve_app.replica.engine", "serve_app.replica.loading")
_RAYS = ("click", "google.protobuf.json_format", "grpc", "jsonschema", "opentelemetry.sdk.trace", "uvicorn")
"""Of what Ray imports from others, what takes longest."""


@contextmanager
def forking(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """Let workers be forked while the context is open; give what Ray must find in its environment for that.

    `environment` is what it must find there besides: some of it is read by imports.
    """
    path = str(folder / "forks")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()  # who comes before the imports have ended waits
        command = [sys.executable, "-m", "tests.integration.forks", str(listener.fileno())]
        # One thread, since a fork has no other: those of OpenMP and OpenBLAS would be missing.
        own = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, env=own, pass_fds=[listener.fileno()]) as process:
            try:
                yield {**environment, SOCKET: path}
            finally:
                process.kill()


def main() -> None:
    """Fork when asked, for as long as who has started this process lives; the forks go on as Ray's workers."""
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        _import()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what becomes of them
        started_by = os.getppid()
        listener.settimeout(1)
        while os.getppid() == started_by:
            with suppress(TimeoutError), listener.accept()[0] as connection:
                connection.setblocking(True)
                _, output, _, _ = socket.recv_fds(connection, 1, len(_OUTPUT))
                asked = json.load(connection.makefile())
                if os.fork() == 0:
                    break
                for copy in output:
                    os.close(copy)
        else:
            return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends workers by their group, which else were that of the tests
    for copy, fd in zip(output, _OUTPUT, strict=True):
        os.dup2(copy, fd)
        os.close(copy)
    _work(**asked)


def _import() -> None:
    """Import what workers take longest for, also what Ray imports of others, but nothing of Ray.

    It reads the environment of its worker then, and forks of one Ray would give their tasks the same ids.
    """
    import_all((*_OURS, *_RAYS))


def _work(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Do what Ray's `setup_worker.py` and the worker's own script do with such arguments."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.workers.setup_worker import parser

    given, rest = parser.parse_known_args(arguments)
    context = RuntimeEnvContext.deserialize(given.serialized_runtime_env_context or "{}")
    os.environ.update(context.env_vars)
    sys.argv = rest
    runpy.run_path(rest[0], run_name="__main__")


def ask() -> None:
    """Ask for a fork with the arguments, the environment, the folder and the output of this process."""
    asked = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET])
        socket.send_fds(connection, [b" "], _OUTPUT)
        connection.sendall(json.dumps(asked).encode())


if __name__ == "__main__":
    ask() if SOCKET in os.environ else main()
