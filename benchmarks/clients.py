"""Many clients that ask a server again and again."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2

from benchmarks.measures import rounds


def keep_asking(
    clients: int,
    seconds: float,
    least: int,
    ask: Callable[[httpx2.Client], httpx2.Response],
    check: Callable[[httpx2.Response], object],
    *,
    timeout_s: float,
) -> list[float]:
    """Let clients ask for `seconds`, each at least `least` times; return when each answer was there, in order, while all of them asked.

    What `ask` or `check` raises ends them all, and is raised here.
    """
    failed = threading.Event()

    def client(_: int) -> list[float]:
        finished: list[float] = []
        try:
            with httpx2.Client(timeout=timeout_s) as http:
                for _ in rounds(seconds, least):
                    if failed.is_set():
                        break
                    response = ask(http)
                    finished.append(time.perf_counter())
                    check(response)
        except BaseException:
            failed.set()
            raise
        return finished

    with ThreadPoolExecutor(clients) as pool:
        answered = list(pool.map(client, range(clients)))
    first_stop = min(finished[-1] for finished in answered)
    return sorted(moment for finished in answered for moment in finished if moment <= first_stop)
