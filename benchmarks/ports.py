"""Ports for servers that start a while after their port was chosen."""

import secrets
import socket

_PORTS = range(20_000, 32_000)
"""Below those that systems give to the near ends of connections, one of which would take the port meanwhile, and above those Ray chooses from."""


def free_port() -> int:
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
