"""This ingress replica's share of the queue and of the replicas, which all ingress replicas have in equal parts."""

from math import ceil

from serve_app.config import AppArgs
from serve_app.fanout.admission import Admission
from serve_app.fanout.dispatch import Dispatcher
from serve_app.fanout.placement import Placement, share_of
from serve_app.fanout.pool import Pool


class Share:
    """Whom this ingress replica may admit, and where it may send them."""

    def __init__(self, pool: Pool, args: AppArgs) -> None:
        self._pool = pool
        self._args = args
        self._placement = Placement()
        self.admission = Admission(0, self._capacity)
        self.dispatcher = Dispatcher(self.admission, lambda: pool.status.replicas, self._placement)
        self.take(args)

    def take(self, args: AppArgs) -> None:
        """Take this replica's part of the queue, and at least one request's, and of the places on the replicas."""
        self._args = args
        share = ceil(args.admission.max_waiting_images / self._ingresses)
        self.admission.max_waiting = max(share, args.limits.max_images)
        self._placement.ingresses = self._ingresses

    def require_place(self, images: int) -> None:
        """Raise TooManyWaiting if the queue has no place for so many images more."""
        pool = self._pool.status
        self.admission.admit(images, ceil(pool.capacity / self._ingresses), pool.images_per_second)

    def queued(self) -> int:
        """Return how many images wait here for a replica with room."""
        return len(self.admission.in_order())

    def _capacity(self) -> int:
        """Return how many images of this ingress replica are generated at once."""
        pool = self._pool.status
        return share_of(pool.capacity, pool.others, self._ingresses)

    @property
    def _ingresses(self) -> int:
        """How many ingress replicas share the pool."""
        return self._pool.deployed.ingresses or self._args.ingress_replicas
