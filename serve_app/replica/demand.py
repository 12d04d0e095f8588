"""What a replica tells the autoscaling policy: its images, those that wait elsewhere, and its pace."""

import time
from collections import deque
from collections.abc import Callable

from serve_app.replica.batching import Load
from serve_app.scaling import IMAGES, PER_SECOND, QUEUED

_FORGET_S = 5.0
"""How long what a caller has told holds; each tells every second."""
_LOOKS = 240
"""Over how many looks with work the pace is measured: two minutes of them."""


class Demand:
    """Callers tell how many images wait at them for a turn; `look`, called regularly, measures the pace."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, tuple[float, int]] = {}
        self._looked: tuple[float, Load] | None = None
        self._paces: deque[tuple[float, int]] = deque(maxlen=_LOOKS)

    def told(self, caller: str, waiting: int) -> None:
        self._told[caller] = (self._clock(), waiting)

    def look(self, load: Load) -> None:
        """Note what was finished since the last look, if there was work then."""
        now = self._clock()
        if self._looked is not None and self._looked[1].active:
            before, then = self._looked
            self._paces.append((now - before, load.finished - then.finished))
        self._looked = (now, load)

    def stats(self, load: Load) -> dict[str, float]:
        """Return the numbers for the policy."""
        since = self._clock() - _FORGET_S
        self._told = {caller: told for caller, told in self._told.items() if told[0] > since}
        seconds, finished = (sum(column) for column in zip(*self._paces, strict=True)) if self._paces else (0, 0)
        return {
            IMAGES: load.active + load.waiting,
            QUEUED: sum(waiting for _, waiting in self._told.values()),
            PER_SECOND: finished / seconds if seconds else 0.0,
        }
