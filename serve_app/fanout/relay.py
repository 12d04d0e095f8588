"""Generations that other ingress replicas hold, read by asking all of them again and again.

A routed call could not choose the replica, and nobody needs to know which one it is.
"""

import asyncio
from collections.abc import AsyncGenerator

from serve_app.errors import NotFound, NotReady, ServiceError
from serve_app.fanout.peers import Peers
from serve_app.readings import Entry, Part
from serve_app.schemas import ErrorEvent, Problem

_WAIT_S = 1.0
"""How long a peer waits for news before it answers that there are none; less than a broadcast may take."""

_TRIES = 5
_PAUSE_S = 0.5


async def part_after(peers: Peers, id: str, after: int, wait_s: float = 0) -> Part:
    """Return what is kept of a generation after an event. Raises NotFound, NotReady."""
    part = await peers.next_part(id, after, wait_s)
    if part is None:
        raise NotFound("there is no such generation: it is unknown or no longer kept")
    return part


async def whole(peers: Peers, id: str) -> Part:
    """Return all that is kept of a generation now. Raises NotFound, NotReady."""
    entries: list[Entry] = []
    part = await part_after(peers, id, 0)
    while part.entries:
        entries += part.entries
        if part.ended:
            break
        part = await part_after(peers, id, _last(entries))
    return Part(tuple(entries), part.ended, part.last, part.created, part.response_format)


async def entries_from(peers: Peers, id: str, part: Part, after: int) -> AsyncGenerator[Entry]:
    """Yield a part, and then what comes, to the end. An ErrorEvent without a number says that it broke."""
    try:
        while True:
            for entry in part.entries:
                yield entry
            after = _last(part.entries, after)
            if part.ended:
                return
            part = await _insist(peers, id, after)
    except ServiceError as error:
        yield Entry(None, ErrorEvent(error=Problem(type=error.type, message=error.message)))


async def _insist(peers: Peers, id: str, after: int) -> Part:
    """Ask once more where a peer was too busy to answer."""
    for _ in range(_TRIES - 1):
        try:
            return await part_after(peers, id, after, _WAIT_S)
        except NotReady:
            await asyncio.sleep(_PAUSE_S)
    return await part_after(peers, id, after, _WAIT_S)


def _last(entries: tuple[Entry, ...] | list[Entry], before: int = 0) -> int:
    return max((entry.number for entry in entries if entry.number is not None), default=before)
