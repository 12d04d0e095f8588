"""Ports for servers that start some time after their port was chosen."""

import random
import socket

_PORTS = range(20_000, 32_000)
"""Above the ports that Ray chooses from, and below Linux's default range of ephemeral ports.

Otherwise an outgoing connection could take the port before its server starts.
"""


def free_port() -> int:
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(f"no port of {_PORTS} is free")
