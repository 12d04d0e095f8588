"""The queue of an ingress: which of its images are in front, which wait, and when no more are admitted."""

from collections.abc import Callable, Hashable
from math import ceil

from serve_app.errors import TooManyWaiting

_LONGEST_RETRY_S = 60
_UNKNOWN_RETRY_S = 10


class Admission:
    """All unfinished images of one ingress replica, in order of arrival.

    Count as many as the ready replicas can generate at once as in work, and the rest as waiting. This is an estimate:
    replicas begin in order of arrival but finish at their own pace.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._order: dict[Hashable, Callable[[], None]] = {}

    def waiting(self, capacity: int) -> int:
        return max(0, len(self._order) - capacity)

    def admit(self, images: int, capacity: int, images_per_second: float) -> None:
        """Raise TooManyWaiting if so many more images would make the queue too long."""
        excess = len(self._order) + images - capacity - self._max_waiting
        if excess > 0:
            raise TooManyWaiting(
                f"{self.waiting(capacity)} images are waiting, {images} more would exceed the limit of "
                f"{self._max_waiting}; try again later or ask for fewer",
                retry_after_s=min(_LONGEST_RETRY_S, ceil(excess / images_per_second))
                if images_per_second
                else _UNKNOWN_RETRY_S,
            )

    def join(self, image: Hashable, on_move: Callable[[], None]) -> None:
        """Put an image at the end; `on_move` is called whenever the queue has moved."""
        self._order[image] = on_move

    def leave(self, image: Hashable) -> None:
        """Take an image out, finished or not."""
        if self._order.pop(image, None) is not None:
            for on_move in set(self._order.values()):
                on_move()

    def positions(self, capacity: int) -> dict[Hashable, int]:
        """Return the place in the queue, from 1, of every image that waits."""
        return {image: place for place, image in enumerate(list(self._order)[capacity:], start=1)}
