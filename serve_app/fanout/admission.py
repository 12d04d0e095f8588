"""The queue of an ingress: which of its images are out on replicas, which wait, and when no more are admitted."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from serve_app.errors import TooManyWaiting
from serve_app.fanout.order import Ticket, Turns
from serve_app.fanout.pace import Pace, retry_after


class _State(Enum):
    WAITING = auto()
    OUT = auto()
    """On a replica, or on its way there."""
    OVER = auto()
    """Its call has ended. It leaves, or waits for another turn."""


@dataclass(slots=True)
class _Image:
    on_move: Callable[[], None]
    state: _State = _State.WAITING
    begun: float | None = None
    """When it came to be among those in work."""


class Admission:
    """All unfinished images of one ingress replica.

    Of those that are out, count as many as the replicas can generate at once (`capacity`) as in work, and the rest as
    waiting, as they do in the replicas. This is an estimate: replicas finish at their own pace.
    """

    def __init__(
        self, max_waiting: int, capacity: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_waiting = max_waiting
        self._capacity = capacity
        self._clock = clock
        self._images: dict[Ticket, _Image] = {}
        self._out: dict[Ticket, str] = {}
        self._turns = Turns()
        self._order: list[Ticket] | None = None
        self._positions: tuple[int, Mapping[Ticket, int]] | None = None
        """The capacity that they hold for, and `positions`, until the queue moves."""
        self._pace = Pace()

    @property
    def out(self) -> Mapping[Ticket, str]:
        """The images that are out and the replica each is on, in the order they went."""
        return self._out

    @property
    def unfinished(self) -> int:
        return len(self._images)

    def waiting(self) -> int:
        return max(0, len(self._out) + len(self.in_order()) - self._capacity())

    def admit(self, images: int, capacity: int, images_per_second: float) -> None:
        """Raise TooManyWaiting if so many more images would make the queue too long.

        `capacity` is this ingress replica's part of what is generated at once, `images_per_second` what all generate.
        """
        excess = self.unfinished + images - capacity - self.max_waiting
        if excess > 0:
            raise TooManyWaiting(
                f"{self.waiting()} images are waiting, {images} more would exceed the limit of "
                f"{self.max_waiting}; try again later or ask for fewer",
                retry_after_s=self._retry_after(excess, images_per_second),
            )

    def join(self, tickets: Sequence[Ticket], on_move: Callable[[], None]) -> None:
        """Let images wait for their turns; `on_move` is called whenever the queue has moved."""
        for ticket in tickets:
            self._images[ticket] = _Image(on_move)
            self._turns.arrive(ticket)
        self._move()

    def leave(self, ticket: Ticket, succeeded: bool = False) -> None:
        """Take an image out, finished or not."""
        image = self._images.pop(ticket, None)
        if image is None:
            return
        self._out.pop(ticket, None)
        self._positions = None
        if succeeded and image.begun is not None:
            self._pace.finished(ticket.work, self._clock() - image.begun)
        self._turns.forget_all_but(self._images)
        self._move()

    def go(self, ticket: Ticket, replica: str) -> None:
        """An image has had its turn and is out on a replica."""
        image = self._images[ticket]
        image.state = _State.OUT
        self._out[ticket] = replica
        self._positions = None
        self._turns.take(ticket)
        if self._order and self._order[0] == ticket:
            self._order.pop(0)  # the rest stays as it was foreseen
        else:
            self._order = None
        self._note_begun()

    def end_turn(self, ticket: Ticket) -> None:
        """An image is no longer out; it leaves soon, or waits again."""
        if image := self._images.get(ticket):
            image.state = _State.OVER
            self._out.pop(ticket, None)
            self._order = self._positions = None
            self._note_begun()

    def wait(self, ticket: Ticket) -> None:
        """An image waits for a turn, once more if it has had one."""
        image = self._images.get(ticket)
        if image is not None and image.state is _State.OVER:
            image.state, image.begun = _State.WAITING, None
            self._move()

    def in_order(self) -> Sequence[Ticket]:
        """Return the images that wait for their turns, in that order."""
        if self._order is None:
            waiting = [ticket for ticket, image in self._images.items() if image.state is _State.WAITING]
            self._order = list(self._turns.in_order(waiting, self._out))
        return self._order

    def positions(self) -> Mapping[Ticket, int]:
        """Return the place in the queue, from 1, of every image that waits, here or in a replica."""
        capacity = self._capacity()
        if self._positions is None or self._positions[0] != capacity:  # all requests ask after each move
            unfinished = [*self._out, *self.in_order()]
            places = {ticket: place for place, ticket in enumerate(unfinished[capacity:], start=1)}
            self._positions = capacity, places
        return self._positions[1]

    def _move(self) -> None:
        self._order = self._positions = None
        self._note_begun()
        for on_move in {image.on_move for image in self._images.values()}:
            on_move()

    def _note_begun(self) -> None:
        for ticket in list(self._out)[: self._capacity()]:
            if self._images[ticket].begun is None:
                self._images[ticket].begun = self._clock()

    def _retry_after(self, excess: int, images_per_second: float) -> int:
        """Return in how many seconds so many images will have left."""
        if self._pace.known:
            now, in_work, queued = self._clock(), [], []
            for ticket in self._out:
                begun = self._images[ticket].begun
                if begun is None:
                    queued.append(ticket.work)
                else:
                    in_work.append((ticket.work, now - begun))
            queued += [ticket.work for ticket in self.in_order()]
            return retry_after(self._pace.seconds_until(excess, in_work, queued))
        return retry_after(excess / images_per_second if images_per_second else None)
