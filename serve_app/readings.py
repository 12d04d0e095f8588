"""What the readers of a generation get: a route from the fan-out, one ingress replica from another."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.schemas import BatchResult, Event, ResponseFormat, UnfinishedResult


class Entry(NamedTuple):
    """An event of a generation; its number, from 1, goes to clients as the event's id.

    None: it is about this reading rather than the generation, and nothing can go on after it.
    """

    number: int | None
    event: Event


@dataclass(frozen=True, slots=True)
class Part:
    """What is kept of a generation's events after a certain one, or the beginning of it.

    `ended`: nothing follows, now or later. `last` is the number of the last event so far. `created` is Unix time in
    seconds.
    """

    entries: tuple[Entry, ...]
    ended: bool
    last: int
    created: int
    response_format: ResponseFormat


@dataclass(frozen=True, slots=True)
class Reading:
    """The events of a generation from some point to its end, and how its pictures are to be sent."""

    entries: AsyncGenerator[Entry]
    response_format: ResponseFormat


@dataclass(frozen=True, slots=True)
class Found:
    """The answer of a generation so far, and how its pictures are to be sent."""

    answer: BatchResult | UnfinishedResult
    response_format: ResponseFormat
