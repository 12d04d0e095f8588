"""What the polls show of each replica: who answers, who is lost from sight, and how fast images are finished."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from serve_app.messages import ReplicaStatus

_MISSED_POLLS = 3
"""Polls in a row without any answer, after which a replica is lost from sight.

A frozen process does not answer, nor one that a long call keeps from its event loop. A busy machine may take a second
or two. If none answers any more, none is lost while Serve still lists it: the machine is busy, or it is this process
that hears nothing.
"""

_RATE_WINDOW_S = 60.0


@dataclass(frozen=True)
class PoolStatus:
    """What the replicas last said; `replicas` are those that generate. One that takes no slots now has no capacity.

    `lost` are those that cannot generate what they hold: they do not answer, or say why themselves.
    """

    replicas: tuple[ReplicaStatus, ...] = ()
    images_per_second: float = 0.0
    lost: frozenset[str] = frozenset()

    @property
    def ready(self) -> int:
        return len(self.replicas)

    @cached_property  # each generation asks whenever the queue has moved
    def capacity(self) -> int:
        """How many images can be generated at once."""
        return sum(r.capacity for r in self.replicas)

    @cached_property
    def others(self) -> int:
        """How many calls of other ingress replicas they hold."""
        return sum(r.others for r in self.replicas)

    @property
    def active(self) -> int:
        return sum(r.active for r in self.replicas)

    @property
    def waiting(self) -> int:
        return sum(r.waiting for r in self.replicas)


@dataclass(slots=True)
class _Seen:
    """A replica that Serve lists. `missed` counts polls since its last answer."""

    status: ReplicaStatus | None = None
    missed: int = 0
    doubted: bool = False
    """It has failed a call since it answered last."""

    @property
    def silent(self) -> bool:
        return self.missed >= _MISSED_POLLS


class Sight:
    """Judges replicas by their answers. A replica is named by its actor until its answer says its id."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._given_up: frozenset[str] = frozenset()
        self._finished: deque[tuple[float, dict[str, int]]] = deque()

    def polled(self, actors: Iterable[str]) -> None:
        """Serve lists these replicas, and each has been asked once more. Forget the others: they are gone or going.

        Those of them that were silent are lost: Serve has given them up. Others may finish what they have.
        """
        before, self._seen = self._seen, {actor: self._seen.get(actor) or _Seen() for actor in actors}
        unlisted = [seen for actor, seen in before.items() if actor not in self._seen]
        self._given_up = frozenset(seen.status.id for seen in unlisted if seen.silent and seen.status is not None)

    def answered(self, actor: str, status: ReplicaStatus) -> None:
        if seen := self._seen.get(actor):
            seen.status, seen.missed, seen.doubted = status, 0, False

    def missed(self, actors: Iterable[str]) -> None:
        """These replicas have not answered before the next poll was due."""
        for actor in actors:
            if seen := self._seen.get(actor):
                seen.missed += 1

    def failed(self, actor: str) -> None:
        """A replica has answered with an error: it is dying, and what it last said does not hold."""
        if seen := self._seen.get(actor):
            seen.status = None

    def doubt(self, id: str) -> None:
        """A replica has failed a call: give it no more until it answers again. Its model is served all the same."""
        for seen in self._seen.values():
            if seen.status is not None and seen.status.id == id:
                seen.doubted = True

    def has_read(self, id: str, hashes: Iterable[str]) -> None:
        """A replica has read adapters since it answered last."""
        for seen in self._seen.values():
            if seen.status is not None and seen.status.id == id:
                seen.status = replace(seen.status, read=seen.status.read.union(hashes))

    def status(self) -> PoolStatus:
        known = [(seen, seen.status) for seen in self._seen.values() if seen.status is not None]
        silent = {status.id for seen, status in known if seen.silent}
        faulty = {status.id for _, status in known if status.fault is not None}
        if len(silent) == len(known):
            silent = set()  # it is not the replicas that are slow, and there is nowhere else to generate
        return PoolStatus(
            replicas=tuple(
                replace(status, capacity=0) if seen.doubted else status
                for seen, status in known
                if status.id not in silent | faulty
            ),
            images_per_second=self._rate(),
            lost=self._given_up | silent | faulty,
        )

    def note_finished(self) -> None:
        """Note what the replicas have finished by now, for the rate."""
        finished = {s.status.id: s.status.finished for s in self._seen.values() if s.status is not None}
        self._finished.append((time.monotonic(), finished))

    def _rate(self) -> float:
        """Return the images per second of the replicas that were there at both ends of the window."""
        if not self._finished:
            return 0.0
        now, finished = self._finished[-1]
        while now - self._finished[0][0] > _RATE_WINDOW_S:
            self._finished.popleft()
        then, before = self._finished[0]
        if now <= then:
            return 0.0
        return sum(finished[id_] - before[id_] for id_ in finished.keys() & before.keys()) / (now - then)
