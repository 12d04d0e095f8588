"""Which images an ingress has in its hands: who is in front, who must wait, when no more are taken."""

from collections.abc import Callable, Hashable
from math import ceil

from serve_app.errors import TooManyWaiting

_LONGEST_RETRY_S = 60
_UNKNOWN_RETRY_S = 10


class Admission:
    """All unfinished images of one ingress replica, in order of arrival.

    As many as the ready replicas can generate at once are taken to be in work, the rest to wait. It is an estimate:
    replicas take what they get in order of arrival, but finish at their own pace.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._order: dict[Hashable, Callable[[], None]] = {}

    def waiting(self, capacity: int) -> int:
        return max(0, len(self._order) - capacity)

    def admit(self, images: int, capacity: int, images_per_second: float) -> None:
        """Raise TooManyWaiting if so many more images would make the line too long."""
        excess = len(self._order) + images - capacity - self._max_waiting
        if excess > 0:
            raise TooManyWaiting(
                f"{self.waiting(capacity)} images are waiting, {images} more would exceed the limit of "
                f"{self._max_waiting}; try again later or ask for fewer",
                retry_after_s=min(_LONGEST_RETRY_S, ceil(excess / images_per_second))
                if images_per_second
                else _UNKNOWN_RETRY_S,
            )

    def join(self, image: Hashable, on_shift: Callable[[], None]) -> None:
        """Put an image at the end; `on_shift` is called whenever the line has moved."""
        self._order[image] = on_shift

    def leave(self, image: Hashable) -> None:
        """Take an image out, finished or not."""
        if self._order.pop(image, None) is not None:
            for on_shift in set(self._order.values()):
                on_shift()

    def positions(self, capacity: int) -> dict[Hashable, int]:
        """Return the place in line, from 1, of every image that waits."""
        return {image: place for place, image in enumerate(list(self._order)[capacity:], start=1)}
