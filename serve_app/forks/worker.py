"""Ray runs this file where it would run its own `setup_worker.py`: it asks for a fork, which becomes the worker.

Where there is nobody to ask, and for a worker with an environment of its own, which libraries might read when they are
imported, it runs Ray's. It imports little, since it runs for each worker.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

SOCKET = "PARALLEL_SDXL_FORKS"
"""The environment's name for the path of the socket at which forks are asked for."""
OUTPUT = (1, 2)
"""The descriptors that a worker is given."""
FIRST_TO_GO = "/proc/self/oom_score_adj"
"""Which processes the kernel ends first where memory runs out: Ray wants it to be workers."""

_OWN_ENVIRONMENT = "--serialized-runtime-env-context"


def main(arguments: Sequence[str]) -> None:
    """Take Ray's arguments, of which the first is the path of what a worker runs."""
    if any(argument.startswith(_OWN_ENVIRONMENT) for argument in arguments) or not _ask(arguments):
        rays = Path(arguments[0]).with_name("setup_worker.py")
        os.execv(sys.executable, [sys.executable, str(rays), *arguments])  # noqa: S606, as Ray would


def _ask(arguments: Sequence[str]) -> bool:
    """Ask for a fork with all that Ray has given this process. Return whether there is one."""
    asked = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "first_to_go": Path(FIRST_TO_GO).read_text(),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ.get(SOCKET, ""))
            socket.send_fds(connection, [b" "], OUTPUT)
            connection.sendall(json.dumps(asked).encode())
            connection.shutdown(socket.SHUT_WR)
            return bool(connection.recv(1))
        except OSError:
            return False


if __name__ == "__main__":
    main(sys.argv[1:])
