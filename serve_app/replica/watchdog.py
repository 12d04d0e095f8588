"""The watchdog: notices work that never ends."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

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
_MOST_KNOWN = 256
"""How many kinds and shapes of work are remembered."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What is done, and for which shape: the time it takes grows with the product of the shape's numbers."""

    kind: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} of {' x '.join(map(str, self.shape))}" if self.shape else self.kind


@dataclass(eq=False, slots=True)
class _Running:
    work: _Work
    began: float
    seen_s: float = 0.0


@dataclass(slots=True)
class _Usual:
    uses: int = 0
    slowest_s: float = 0.0


class Watchdog:
    """Watches pieces of work, on any thread, and learns how long they take by their kinds and shapes.

    The first uses of a shape may take `stall_timeout_s`, or longer if the largest known shape of that kind suggests so.
    """

    def __init__(self, stall_timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._first_s = stall_timeout_s
        self._floor_s = min(_FLOOR_S, stall_timeout_s)
        self._clock = clock
        self._looked = clock()
        self._lock = threading.Lock()  # guards the next two
        self._running: set[_Running] = set()
        self._usual: OrderedDict[_Work, _Usual] = OrderedDict()  # the last used is last

    @contextmanager
    def watching(self, kind: str, *shape: int) -> Iterator[None]:
        """Watch the work done while the context is open. Equal kinds and shapes must mean work of equal size."""
        running = _Running(_Work(kind, shape), self._clock())
        with self._lock:
            self._running.add(running)
        try:
            yield
            with self._lock:  # what fails at once says nothing of how long it takes
                self._learn(running.work, self._clock() - running.began)
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

    def _bound(self, work: _Work) -> float:
        usual = self._usual.get(work)
        if usual is None or usual.uses < _FIRST_USES:
            return max(self._first_s, _FACTOR * self._expected_s(work))
        return max(self._floor_s, _FACTOR * usual.slowest_s)

    def _expected_s(self, work: _Work) -> float:
        """Return how long work of an unknown shape should take, by the largest known one of its kind; 0 without one."""
        known = [(prod(w.shape), usual.slowest_s) for w, usual in self._usual.items() if w.kind == work.kind]
        size, slowest_s = max(known, default=(1, 0.0))
        return slowest_s * max(1.0, prod(work.shape) / size)

    def _learn(self, work: _Work, took: float) -> None:
        usual = self._usual.setdefault(work, _Usual())
        usual.uses += 1
        kept = usual.slowest_s * _FORGETS if usual.uses > _FIRST_USES else 0.0
        usual.slowest_s = max(kept, took)
        self._usual.move_to_end(work)
        if len(self._usual) > _MOST_KNOWN:
            self._usual.popitem(last=False)
