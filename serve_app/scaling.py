"""Serve's autoscaling policy of the replicas: as many as the images that wait and are generated need."""

from collections.abc import Mapping
from typing import Any, Protocol

IMAGES = "images"
"""Images that a replica holds, in work or waiting there."""
QUEUED = "images_queued"
"""Images that wait in the ingress replicas for any replica, as each was told."""
PER_SECOND = "images_per_second"
"""How fast a replica generates while it has work; 0 before it is known."""


class Measured(Protocol):
    """What this policy uses of Serve's AutoscalingContext: each replica's numbers, averaged over some seconds."""

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...
    @property
    def target_num_replicas(self) -> int: ...


class ImagesPolicy:
    """Wants as many replicas as finish all images within `target_wait_s` seconds, and no fewer while any are queued.

    Before the first images were timed, one replica for each `capacity` images; before any replica has told anything,
    those there are and at least `at_first`. Serve keeps the bounds and the delays.
    """

    def __init__(self, target_wait_s: float, capacity: int, at_first: int) -> None:
        self._target_wait_s = target_wait_s
        self._capacity = capacity
        self._at_first = at_first

    def __call__(self, measured: Measured) -> tuple[float, dict[str, Any]]:
        metrics = measured.aggregated_metrics or {}
        if not metrics.get(IMAGES):
            return max(measured.target_num_replicas, self._at_first), {}
        self._at_first = 0  # from now on, knowing nothing is no reason to change
        queued = max(metrics.get(QUEUED, {}).values(), default=0.0)
        images = sum(metrics[IMAGES].values()) + queued
        paces = [pace for pace in metrics.get(PER_SECOND, {}).values() if pace > 0]
        each = self._target_wait_s * sum(paces) / len(paces) if paces else self._capacity
        wanted = images / each
        return max(wanted, measured.target_num_replicas) if queued else wanted, {}
