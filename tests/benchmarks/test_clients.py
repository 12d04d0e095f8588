import threading
import time
from collections import Counter

import httpx2
import pytest

from benchmarks.clients import keep_asking


class Server:
    """Answers the first client that comes slowly."""

    def __init__(self) -> None:
        self._slow: int | None = None
        self.answered: list[int] = []

    def ask(self, _: httpx2.Client) -> httpx2.Response:
        client = threading.get_ident()
        self._slow = self._slow or client
        time.sleep(0.2 if client == self._slow else 0.01)
        self.answered.append(client)
        return httpx2.Response(200)


def test_clients_ask_until_the_slowest_has_enough_answers() -> None:
    server = Server()
    finished = keep_asking(2, 0, 2, server.ask, lambda _: None, timeout_s=1)
    slow, fast = sorted(Counter(server.answered).values())
    assert slow == 2
    assert fast > 10
    assert finished == sorted(finished)
    assert len(finished) in {slow + fast - 1, slow + fast}, (
        "all but an answer that came after the slowest client's last"
    )


def test_an_error_ends_all_clients() -> None:
    def refuse(_: httpx2.Response) -> None:
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        keep_asking(3, 60, 1, Server().ask, refuse, timeout_s=1)
