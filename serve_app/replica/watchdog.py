"""The watchdog: notices work that never ends."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_FACTOR = 20
"""How many times longer than usual work may take before it counts as stalled."""
_FLOOR_S = 10.0
"""Work never counts as stalled before this time, whatever it usually takes: the machine may be busy."""
_FIRST_USES = 2
"""The first use of a shape loads kernels, or compiles them; the second captures a CUDA graph."""
_FORGETS = 0.99
"""By how much an unusually slow time counts less with each later one."""
_LONGEST_LOOK_S = 2.0
"""The longest time between two looks that counts: after a longer one, the process itself stood still."""


@dataclass(eq=False, slots=True)
class _Running:
    work: str
    began: float
    seen_s: float = 0.0


@dataclass(slots=True)
class _Usual:
    uses: int = 0
    slowest_s: float = 0.0


class Watchdog:
    """Watches pieces of work, on any thread, and learns how long they take by their names.

    `stall_timeout_s` is how long the first uses of a name may take.
    """

    def __init__(self, stall_timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._first_s = stall_timeout_s
        self._floor_s = min(_FLOOR_S, stall_timeout_s)
        self._clock = clock
        self._looked = clock()
        self._lock = threading.Lock()  # guards the next two
        self._running: set[_Running] = set()
        self._usual: dict[str, _Usual] = {}

    @contextmanager
    def watching(self, work: str) -> Iterator[None]:
        """Watch the work done while the context is open. Equal names must mean work of equal size."""
        running = _Running(work, self._clock())
        with self._lock:
            self._running.add(running)
        try:
            yield
            took = self._clock() - running.began
            with self._lock:  # what fails at once says nothing of how long it takes
                self._learn(self._usual.setdefault(work, _Usual()), took)
        finally:
            with self._lock:
                self._running.discard(running)

    def stalled(self) -> str | None:
        """Say which work has stalled, or None. To be called about every half second."""
        now = self._clock()
        passed = min(now - self._looked, _LONGEST_LOOK_S)
        self._looked = now
        with self._lock:
            for running in self._running:
                running.seen_s += min(passed, now - running.began)
                if running.seen_s > self._bound(running.work):
                    return f"{running.work} has not ended for {running.seen_s:.0f} s"
        return None

    def _bound(self, work: str) -> float:
        usual = self._usual.get(work)
        if usual is None or usual.uses < _FIRST_USES:
            return self._first_s
        return max(self._floor_s, _FACTOR * usual.slowest_s)

    @staticmethod
    def _learn(usual: _Usual, took: float) -> None:
        usual.uses += 1
        kept = usual.slowest_s * _FORGETS if usual.uses > _FIRST_USES else 0.0
        usual.slowest_s = max(kept, took)
