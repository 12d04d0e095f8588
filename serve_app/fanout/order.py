"""Whose turn it is: the policy that keeps one client's batch from starving another's single image.

The next free place goes to the client with the fewest images out on replicas; among equals to the one whose last turn
is longest ago. The same rule chooses among a client's generations; within one, images go by index. So before an image
of a client that has none out, every other client gets at most one turn.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A slot's claim to be generated: for whom, in which generation, how much work it is (in any unit), and by what.

    `model` is the hash of the weights that its request began with, `adapters` tells its adapters from others, `files`
    are their hashes and those of its embeddings.
    """

    client: Hashable
    generation: Hashable
    index: int
    work: float = field(default=1.0, compare=False)
    model: str | None = field(default=None, compare=False)
    adapters: Hashable = field(default=None, compare=False)
    files: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(slots=True)
class Turns:
    """When each client and each of its generations last had a turn; arriving counts as one."""

    _clients: dict[Hashable, int] = field(default_factory=dict)
    _generations: dict[Hashable, int] = field(default_factory=dict)
    _clock: Iterator[int] = field(default_factory=count)

    def arrive(self, ticket: Ticket) -> None:
        now = next(self._clock)
        self._clients.setdefault(ticket.client, now)
        self._generations.setdefault(ticket.generation, now)

    def take(self, ticket: Ticket) -> None:
        self._clients[ticket.client] = self._generations[ticket.generation] = next(self._clock)

    def forget_all_but(self, tickets: Iterable[Ticket]) -> None:
        clients, generations = set(), set()
        for ticket in tickets:
            clients.add(ticket.client)
            generations.add(ticket.generation)
        self._clients = {key: turn for key, turn in self._clients.items() if key in clients}
        self._generations = {key: turn for key, turn in self._generations.items() if key in generations}

    def in_order(self, waiting: Iterable[Ticket], out: Iterable[Ticket]) -> Iterator[Ticket]:
        """Yield the waiting tickets in the order of their turns, as far as known now: while none of those out ends."""
        queues: dict[Hashable, dict[Hashable, list[Ticket]]] = {}
        for ticket in sorted(waiting, key=lambda ticket: ticket.index):
            queues.setdefault(ticket.client, {}).setdefault(ticket.generation, []).append(ticket)
        clients_out: Counter[Hashable] = Counter()
        generations_out: Counter[Hashable] = Counter()
        for ticket in out:
            clients_out[ticket.client] += 1
            generations_out[ticket.generation] += 1
        by_client = {
            client: _alternate(generations, generations_out, self._generations)
            for client, generations in queues.items()
        }
        return _alternate(by_client, clients_out, self._clients)


def _alternate(
    queues: Mapping[K, Iterable[Ticket]], out: Mapping[K, int], last_turn: Mapping[K, int]
) -> Iterator[Ticket]:
    """Yield all tickets of the queues, each time of the queue with the fewest out, then with the oldest turn."""
    heap = [(out[key], last_turn[key], place, iter(queue)) for place, (key, queue) in enumerate(queues.items())]
    heapify(heap)
    turn = count(max((last_turn[key] for key in queues), default=0) + 1)
    while heap:
        already_out, _, place, queue = heappop(heap)
        for ticket in queue:
            yield ticket
            heappush(heap, (already_out + 1, next(turn), place, queue))
            break
