"""Many clients that send requests to a server repeatedly."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2


def keep_asking(
    clients: int,
    seconds: float,
    least: int,
    ask: Callable[[httpx2.Client], httpx2.Response],
    check: Callable[[httpx2.Response], object],
    *,
    timeout_s: float,
) -> list[float]:
    """Send requests for `seconds` and until each client has `least` answers; return when each answer came, in order.

    Answers count while all clients are sending. An error in `ask` or `check` stops all clients and is raised here.
    """
    failed = threading.Event()
    answered: list[list[float]] = [[] for _ in range(clients)]
    end = time.perf_counter() + seconds

    def enough() -> bool:
        return time.perf_counter() >= end and all(len(finished) >= least for finished in answered)

    def client(finished: list[float]) -> None:
        try:
            with httpx2.Client(timeout=timeout_s, trust_env=False) as http:
                while not (failed.is_set() or enough()):
                    response = ask(http)
                    finished.append(time.perf_counter())
                    check(response)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, finished) for finished in answered]
    for one in running:
        one.result()
    # Not the moment when the first client stopped, which is in the middle of a bunch of answers.
    ended = max(end, *(finished[least - 1] for finished in answered))
    return sorted(moment for finished in answered for moment in finished if moment <= ended)
