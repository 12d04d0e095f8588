"""Ray runs this file where it would run its own `setup_worker.py`: it asks for a fork, which becomes the worker.

It runs Ray's where there is nobody to ask, and for a worker with an environment of its own, which libraries may read
when they are imported. It imports little itself, since it runs for each worker.
"""

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOCKET = "PARALLEL_SDXL_FORKS"
"""The environment's name for the path of the socket at which forks are asked for."""
OUTPUT = (1, 2)
"""The descriptors that a worker is given."""
OOM_SCORE = "/proc/self/oom_score_adj"

_OWN_ENVIRONMENT = "--serialized-runtime-env-context"
_WAIT_S = 40.0
"""How long imports may take. Ray gives up on a worker after 60 s, of which one that starts by itself needs some."""


def main(arguments: Sequence[str]) -> None:
    """Take Ray's arguments, of which the first is the path of what a worker runs."""
    if any(argument.startswith(_OWN_ENVIRONMENT) for argument in arguments) or not _ask(arguments):
        rays = Path(arguments[0]).with_name("setup_worker.py")
        os.execv(sys.executable, [sys.executable, str(rays), *arguments])  # noqa: S606, as Ray would


def _ask(arguments: Sequence[str]) -> bool:
    """Ask for a fork. Return whether there is one."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_WAIT_S)
        try:
            connection.connect(os.environ.get(SOCKET, ""))
            socket.send_fds(connection, [b" "], OUTPUT)
            connection.sendall(json.dumps(_given(arguments)).encode())
            connection.shutdown(socket.SHUT_WR)
            return bool(connection.recv(1))
        except OSError:
            return False


def _given(arguments: Sequence[str]) -> dict[str, Any]:
    """Return all that Ray has given this process; see `server.Asked`."""
    limits = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "blocked": [*signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "limits": [(limit, resource.getrlimit(limit)) for limit in limits],
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score": Path(OOM_SCORE).read_text(),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
