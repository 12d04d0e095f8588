"""Clients that wait for their pictures, leave, or cancel, and what came of it."""

import asyncio
import hashlib
import json
import time
from base64 import b64decode
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Literal, NamedTuple

import httpx2

Body = Mapping[str, Any]
Route = Literal["/generate", "/stream"]

_TIMEOUT_S = 330.0
_TRIES = 200
_LONGEST_PAUSE_S = 2.0
_LAST_STEPS = 2
_ENDS = {"succeeded": "image", "failed": "failed", "cancelled": "cancelled"}
"""The event of a stream that says the same as an image's status in an answer."""


class Fate(Enum):
    """What became of a request."""

    ANSWERED = "answered"
    LEFT = "left"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    """429 or 503, with a Retry-After."""
    UNREACHED = "unreached"
    """Nobody took the connection."""
    TORN = "torn"
    """The connection ended before the answer did."""
    LOST = "lost"
    """Accepted, and ended without all its pictures."""
    ERROR = "error"
    """Any other status."""


class Picture(NamedTuple):
    """A picture's digest, and the hash of the weights that generated it."""

    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """`pictures` are known by seed, `seconds` the time to the end, `retry_after_s` what a refusal says.

    `duplicates` counts the images that ended more than once.
    """

    fate: Fate
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    seconds: float = 0.0
    retry_after_s: float = 0.0
    duplicates: int = 0
    detail: str = ""


@dataclass(slots=True)
class Received:
    """What has come of an answer so far."""

    model: str = ""
    """Of the weights that the request began with."""
    pictures: dict[int, Picture] = field(default_factory=dict)
    ends: Counter[int] = field(default_factory=Counter)
    """How often each image has ended, by index."""
    kinds: Counter[str] = field(default_factory=Counter)
    last: str = "nothing"

    def take(self, event: Mapping[str, Any]) -> None:
        self.last = event["type"]
        self.kinds[self.last] += 1
        if self.last in _ENDS.values():
            self.ends[event["index"]] += 1
        if self.last == "start":
            self.model = event.get("parameters", {}).get("model", {}).get("hash", "")
        if self.last == "image":
            model = (event.get("model") or {}).get("hash", self.model)
            digest = hashlib.sha256(b64decode(event["b64_json"])).hexdigest()[:16]
            self.pictures[event["seed"]] = Picture(model, digest)

    def judge(self, images: int, seconds: float, *, may_be_cancelled: bool = False) -> Outcome:
        """Judge what has come once the connection has ended in order."""
        if self.last not in ("completed", "error"):
            return self.outcome(Fate.TORN, f"the last event is {self.last}")
        if self.last == "completed" and len(self.pictures) == images:
            return self.outcome(Fate.ANSWERED, seconds=seconds)
        as_asked = may_be_cancelled and len(self.pictures) + self.kinds["cancelled"] == images
        if self.last == "completed" and as_asked:
            return self.outcome(Fate.CANCELLED)
        return self.outcome(Fate.LOST, f"of {images} images came {dict(self.kinds)}")

    def broken_off(self, error: httpx2.TransportError) -> Outcome:
        fate = Fate.UNREACHED if isinstance(error, httpx2.ConnectError) else Fate.TORN
        return self.outcome(fate, f"{type(error).__name__} after {len(self.pictures)} pictures")

    def outcome(self, fate: Fate, detail: str = "", seconds: float = 0.0) -> Outcome:
        duplicates = self.ends.total() - len(self.ends)
        return Outcome(fate, self.pictures, seconds, duplicates=duplicates, detail=detail)


@dataclass(slots=True)
class Tally:
    """Counts outcomes, and pictures that are not those that the same weights have generated alone."""

    expected: dict[tuple[str, int, str], str] = field(default_factory=dict)
    fates: Counter[Fate] = field(default_factory=Counter)
    images: int = 0
    duplicates: int = 0
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def add(self, body: Body, outcome: Outcome) -> None:
        self.fates[outcome.fate] += 1
        self.images += len(outcome.pictures)
        self.duplicates += outcome.duplicates
        if outcome.detail:
            self.details.append(outcome.detail)
        if outcome.fate is Fate.ANSWERED:
            self.seconds.append(outcome.seconds)
        for seed, (model, digest) in outcome.pictures.items():
            self.wrong += self.expected.setdefault((_key(body), seed, model), digest) != digest

    def fresh(self) -> "Tally":
        """Return an empty tally that knows the same pictures."""
        return Tally(self.expected)

    @property
    def sent(self) -> int:
        return self.fates.total() - self.fates[Fate.UNREACHED]

    @property
    def gone(self) -> int:
        """How many clients have left or cancelled."""
        return self.fates[Fate.LEFT] + self.fates[Fate.CANCELLED]

    def __str__(self) -> str:
        parts = [f"sent {self.sent}", *(f"{fate.value} {self.fates[fate]}" for fate in Fate if self.fates[fate])]
        return ", ".join([*parts, f"duplicates {self.duplicates}", f"other pictures {self.wrong}"])


class Clients:
    """Sends requests to a service."""

    def __init__(self, url: str, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self.http = httpx2.AsyncClient(
            base_url=url, timeout=_TIMEOUT_S, trust_env=False, limits=limits, transport=transport
        )

    async def ask(self, body: Body, route: Route = "/stream", received: Received | None = None) -> Outcome:
        """Wait for all pictures; `received` shows what has come so far."""
        received, started = received or Received(), time.monotonic()
        read = self._stream if route == "/stream" else self._generate
        try:
            refused = await read(body, received)
        except httpx2.TransportError as error:
            return received.broken_off(error)
        return refused or received.judge(body["num_images"], time.monotonic() - started)

    async def insist(self, body: Body, tally: Tally) -> None:
        """Ask until there is an answer, as a client that knows how to retry does."""
        for _ in range(_TRIES):
            outcome = await self.ask(body)
            tally.add(body, outcome)
            match outcome.fate:
                case Fate.REFUSED:
                    await asyncio.sleep(min(outcome.retry_after_s, _LONGEST_PAUSE_S))
                case Fate.TORN | Fate.UNREACHED:
                    await asyncio.sleep(0.5)
                case _:
                    return
        tally.add(body, Outcome(Fate.LOST, detail=f"no answer in {_TRIES} tries"))

    async def leave(self, body: Body, route: Route, after_s: float) -> Outcome:
        """Hang up after a time, whatever has come by then."""
        received = Received()
        try:
            async with asyncio.timeout(after_s):
                return await self.ask(body, route, received)
        except TimeoutError:
            return received.outcome(Fate.LEFT)

    async def cancel(self, body: Body, after_s: float, *, from_last_steps: bool = False) -> Outcome:
        """Cancel by the request's id, and wait for the stream's end.

        `after_s` counts from the start, or from the last steps of the first image that gets there.
        """
        received, started = Received(), time.monotonic()
        last = body["num_inference_steps"] - _LAST_STEPS if from_last_steps else None
        try:
            refused = await self._stream(body, received, partial(_is_due, last), after_s)
        except httpx2.TransportError as error:
            return received.broken_off(error)
        return refused or received.judge(body["num_images"], time.monotonic() - started, may_be_cancelled=True)

    async def _stream(
        self, body: Body, received: Received, due: Callable[[Mapping[str, Any]], bool] | None = None, after_s: float = 0
    ) -> Outcome | None:
        """Read a stream to its end; return the refusal, if it is one.

        Cancel it so long after the first event for which that is due.
        """
        id_ = ""
        cancelling: list[asyncio.Task[None]] = []
        try:
            async with self.http.stream("POST", "/stream", json=dict(body)) as response:
                if refused := await _refusal(response):
                    return refused
                async for event in _events(response):
                    received.take(event)
                    id_ = event.get("id", id_)
                    if due and not cancelling and due(event):
                        cancelling.append(asyncio.create_task(self._cancel_later(id_, after_s)))
        finally:
            await asyncio.gather(*cancelling)
        return None

    async def _generate(self, body: Body, received: Received) -> Outcome | None:
        response = await self.http.post("/generate", json=dict(body))
        if refused := await _refusal(response):
            return refused
        answer = response.json()
        received.take({"type": "start", "parameters": answer.get("parameters", {})})
        for image in answer["images"]:
            received.take({**image, "type": _ENDS[image["status"]]})
        received.take({"type": "completed"})
        return None

    async def _cancel_later(self, id: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await self.http.delete(f"/generations/{id}")  # 404 where it has ended


def _is_due(step: int | None, event: Mapping[str, Any]) -> bool:
    """Say whether a stream has started, or with a step, whether one of its images has done so many."""
    if step is None:
        return bool(event["type"] == "start")
    return bool(event["type"] == "progress" and event["step"] >= step)


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


def _key(body: Body) -> str:
    return json.dumps(
        {name: value for name, value in body.items() if name not in ("seed", "num_images")}, sort_keys=True
    )
