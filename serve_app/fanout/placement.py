"""Which replica a slot goes to."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from itertools import count

from serve_app.fanout.order import Ticket
from serve_app.messages import ReplicaStatus

_DEPTH = 2
"""Batches a replica is given: one is generated, the next waits there, so that no place in it stays empty."""


def share_of(total: int, others: int, ingresses: int) -> int:
    """Return how much of what all ingress replicas share is this one's: what the others leave, at least its part."""
    return max(-(-total // ingresses), total - others)


class Placement:
    """Chooses the replica with the fewest calls, of anyone's; then one that has the weights of the slot's adapters
    ready, or at least has read them; then with the fewest of the same generation.

    What others call is known from the polls, and up to a second old. So that no ingress replica starves another, each
    may always use its part of the places.
    """

    def __init__(self, ingresses: int = 1) -> None:
        self.ingresses = ingresses
        self._clock = count(1)
        self._last_chosen: dict[str, int] = {}

    def has_room(self, replicas: Sequence[ReplicaStatus], out: Mapping[Ticket, str]) -> bool:
        """Return whether any slot may go out."""
        own = Counter(out.values())
        taking = [r for r in replicas if r.capacity]
        places = sum(_DEPTH * r.capacity for r in taking)
        most = share_of(places, sum(r.others for r in taking), self.ingresses)
        return sum(own[r.id] for r in taking) < most

    def choose(
        self, ticket: Ticket, replicas: Sequence[ReplicaStatus], out: Mapping[Ticket, str], avoid: Set[str]
    ) -> str | None:
        """Return the replica for a slot, or None where it must wait.

        Replicas with other weights than the slot's take it only if none has these, and one to avoid only if all others
        are gone.
        """
        if not self.has_room(replicas, out):
            return None
        own = Counter(out.values())
        siblings = Counter(id_ for other, id_ in out.items() if other.generation == ticket.generation)
        same = [r for r in replicas if ticket.model in (None, r.model.hash)] or replicas
        wanted = [r for r in same if r.id not in avoid] or same
        chosen = min(
            (r for r in wanted if own[r.id] < _DEPTH * r.capacity),
            key=lambda r: (
                own[r.id] + r.others,
                ticket.adapters is not None and ticket.adapters not in r.adapters,
                len(ticket.files - r.read),
                siblings[r.id],
                self._last_chosen.get(r.id, 0),
            ),
            default=None,
        )
        if chosen is None:
            return None
        known = {r.id for r in replicas}
        self._last_chosen = {id_: turn for id_, turn in self._last_chosen.items() if id_ in known}
        self._last_chosen[chosen.id] = next(self._clock)
        return chosen.id
