"""Clients that wait for their pictures, leave, or cancel, and what came of it."""

import asyncio
import hashlib
import json
import time
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import httpx2

Body = Mapping[str, Any]

_TIMEOUT_S = 180.0
_TRIES = 60


class Fate(Enum):
    """What became of a request."""

    ANSWERED = "answered"
    LEFT = "left"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """429 or 503, with a Retry-After."""
    TORN = "torn"
    """The connection ended before the answer did."""
    LOST = "lost"
    """Accepted, and ended without all its pictures."""
    ERROR = "error"
    """Any other status."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`pictures` are digests by seed, `seconds` the time to the end, `retry_after_s` what a refusal says."""

    fate: Fate
    pictures: Mapping[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    retry_after_s: float = 0.0
    duplicates: int = 0
    detail: str = ""


@dataclass(slots=True)
class Tally:
    """Counts outcomes, and pictures that are not those generated alone."""

    expected: dict[tuple[str, int], str] = field(default_factory=dict)
    fates: Counter[Fate] = field(default_factory=Counter)
    duplicates: int = 0
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def add(self, body: Body, outcome: Outcome) -> None:
        self.fates[outcome.fate] += 1
        self.duplicates += outcome.duplicates
        if outcome.detail:
            self.details.append(outcome.detail)
        if outcome.fate is Fate.ANSWERED:
            self.seconds.append(outcome.seconds)
        for seed, digest in outcome.pictures.items():
            self.wrong += self.expected.setdefault((_key(body), seed), digest) != digest

    def fresh(self) -> "Tally":
        """Return an empty tally that knows the same pictures."""
        return Tally(self.expected)

    def __str__(self) -> str:
        sent = sum(self.fates.values())
        parts = [f"sent {sent}", *(f"{fate.value} {self.fates[fate]}" for fate in Fate)]
        return ", ".join([*parts, f"duplicates {self.duplicates}", f"other pictures {self.wrong}"])


class Clients:
    """Sends requests to a service."""

    def __init__(self, url: str) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self.http = httpx2.AsyncClient(base_url=url, timeout=_TIMEOUT_S, trust_env=False, limits=limits)

    async def ask(self, body: Body) -> Outcome:
        """Wait for a stream to its end."""
        started, pictures, duplicates = time.monotonic(), dict[int, str](), 0
        try:
            async with self.http.stream("POST", "/stream", json=dict(body)) as response:
                if refused := await _refusal(response):
                    return refused
                async for event in _events(response):
                    match event["type"]:
                        case "image":
                            duplicates += event["seed"] in pictures
                            pictures[event["seed"]] = _digest(event)
                        case "completed" | "error" as last:
                            seconds = time.monotonic() - started
                            whole = last == "completed" and len(pictures) == body["num_images"]
                            fate = Fate.ANSWERED if whole else Fate.LOST
                            detail = "" if whole else f"{last}: {json.dumps(event)[:300]}, {len(pictures)} pictures"
                            return Outcome(fate, pictures, seconds, duplicates=duplicates, detail=detail)
        except httpx2.TransportError as error:
            return Outcome(Fate.TORN, pictures, detail=f"{type(error).__name__} after {len(pictures)} pictures")
        return Outcome(Fate.TORN, pictures, detail=f"no last event after {len(pictures)} pictures")

    async def insist(self, body: Body, tally: Tally) -> None:
        """Ask until there is an answer, as a client that knows how to retry does."""
        for _ in range(_TRIES):
            outcome = await self.ask(body)
            tally.add(body, outcome)
            match outcome.fate:
                case Fate.REFUSED:
                    await asyncio.sleep(min(outcome.retry_after_s, 2.0))
                case Fate.TORN:
                    await asyncio.sleep(0.5)
                case _:
                    return
        raise RuntimeError(f"no answer in {_TRIES} tries: {outcome}")

    async def leave(self, body: Body, after_s: float) -> Outcome:
        """Hang up after a time, whatever has come by then."""
        try:
            async with asyncio.timeout(after_s):
                return await self.ask(body)
        except TimeoutError:
            return Outcome(Fate.LEFT)

    async def cancel(self, body: Body, after_s: float) -> Outcome:
        """Cancel after a time by the request's id, and wait for the stream's end."""
        last, cancelling = "nothing", asyncio.create_task(asyncio.sleep(0))
        try:
            async with self.http.stream("POST", "/stream", json=dict(body)) as response:
                if refused := await _refusal(response):
                    return refused
                async for event in _events(response):
                    last = event["type"]
                    if last == "start":
                        cancelling = asyncio.create_task(self._cancel_later(event["id"], after_s))
        except httpx2.TransportError as error:
            return Outcome(Fate.TORN, detail=f"{type(error).__name__} in a cancelled stream")
        finally:
            await cancelling
        if last != "completed":
            return Outcome(Fate.LOST, detail=f"a cancelled stream ended with {last}")
        return Outcome(Fate.CANCELLED)

    async def _cancel_later(self, id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        (await self.http.delete(f"/generations/{id}")).read()  # 404 where it has ended


async def _refusal(response: httpx2.Response) -> Outcome | None:
    if response.status_code == httpx2.codes.OK:
        return None
    text = (await response.aread()).decode(errors="replace")[:300]
    retry_after = response.headers.get("Retry-After")
    if response.status_code in (429, 503) and retry_after is not None:
        return Outcome(Fate.REFUSED, retry_after_s=float(retry_after))
    return Outcome(Fate.ERROR, detail=f"{response.status_code}: {text}")


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def _digest(event: Mapping[str, Any]) -> str:
    return hashlib.sha256(b64decode(event["b64_json"])).hexdigest()[:16]


def _key(body: Body) -> str:
    return json.dumps(
        {name: value for name, value in body.items() if name not in ("seed", "num_images")}, sort_keys=True
    )
