"""Whether a replica is ready and, while none is, in how many seconds one will be: learned from real starts."""

import time
from collections.abc import Callable
from typing import Literal

from serve_app.fanout.pace import retry_after
from serve_app.messages import START_NEWS_S

Readiness = Literal["ready", "starting", "asleep", "waking"]

_OVERDUE = 0.25
"""What is left of a start that takes longer than the last, as a part of the last one's time."""


_HOLDS_S = 3 * START_NEWS_S
"""How long it holds what a replica says of its start."""


class Starts:
    """What the service is, told by `look` again and again, and how long its starts take from none to the first replica.

    One that may sleep is only `starting` until it has had a replica: from then on a request brings one back.
    """

    def __init__(self, may_sleep: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.may_sleep = may_sleep
        self._clock = clock
        self._since = clock()
        self._took_s: float | None = None
        self._told: dict[str, tuple[float, str]] = {}
        self.readiness: Readiness = "starting"

    def look(self, ready: bool, asleep: bool) -> None:
        """`asleep`: Serve wants no replicas, and nothing has been done about it."""
        before, self.readiness = self.readiness, self._now(ready, asleep)
        if self.readiness == before:
            return
        if self.readiness == "ready" and before in ("starting", "waking"):
            self._took_s = self._clock() - self._since
        self._since = self._clock()

    def note(self, replica: str, words: str) -> None:
        """A replica says how far its start is."""
        self._told[replica] = self._clock(), words

    @property
    def news(self) -> str | None:
        """How far the replicas are that start, None where none says so."""
        now = self._clock()
        self._told = {replica: told for replica, told in self._told.items() if now - told[0] < _HOLDS_S}
        return ", ".join(sorted({words for _, words in self._told.values()})) or None

    @property
    def retry_after_s(self) -> int:
        """When to ask again, if the service is woken now or wakes already."""
        if self._took_s is None or self.readiness == "asleep":
            return retry_after(self._took_s)
        return retry_after(max(self._took_s - (self._clock() - self._since), _OVERDUE * self._took_s))

    def _now(self, ready: bool, asleep: bool) -> Readiness:
        if ready:
            return "ready"
        if not self.may_sleep:
            return "starting"
        if asleep:
            return "asleep"
        return "starting" if self.readiness == "starting" else "waking"
