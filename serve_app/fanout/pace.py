"""How long images take, learned from those that have just been generated."""

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from math import ceil

_REMEMBERED = 32
_OVERDUE = 0.25
"""What is left of an image that takes longer than usual, as a part of the usual time."""

_LONGEST_RETRY_S = 60
_UNKNOWN_RETRY_S = 10


def retry_after(seconds: float | None) -> int:
    """Return what to tell a client that could come again in so many seconds, None where nobody knows.

    Not above a minute: OpenAI's clients, for one, do as they like then.
    """
    return max(1, min(_LONGEST_RETRY_S, ceil(_UNKNOWN_RETRY_S if seconds is None else seconds)))


class Pace:
    """The seconds that a unit of work takes while an image is among those in work.

    Long images count for more than short ones: an image also takes time that does not grow with its steps, so a unit of
    a short one takes longest.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)

    def finished(self, work: float, seconds: float) -> None:
        self._recent.append((work, seconds))

    @property
    def known(self) -> bool:
        return bool(self._recent)

    def seconds_until(self, images: int, in_work: Iterable[tuple[float, float]], waiting: Iterable[float]) -> float:
        """Return when so many images will have left: those in work, by work and age, and the waiting, by work.

        Each that leaves makes room for the next.
        """
        unit = sum(seconds for _, seconds in self._recent) / sum(work for work, _ in self._recent)
        ends = [max(unit * work - age, _OVERDUE * unit * work) for work, age in in_work]
        heapify(ends)
        queue, end = iter(waiting), 0.0
        for _ in range(images):
            if not ends:
                break
            end = heappop(ends)
            for work in queue:
                heappush(ends, end + unit * work)
                break
        return end
