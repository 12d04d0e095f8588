"""What the soak would find: each of its checks sees what it is there for."""

import asyncio
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest

from benchmarks.soak import checks
from benchmarks.soak.checks import Flood, Row
from benchmarks.soak.clients import Clients, Fate, Outcome, Tally
from benchmarks.soak.cluster import Part, State
from benchmarks.soak.witness import Refusal, Room, Stage
from serve_app.errors import TooManyWaiting
from serve_app.fanout.admission import Admission
from tests.fakes import tickets

BODY = {"prompt": "a", "num_images": 2, "seed": 5}
START = {"type": "start", "id": "x"}
COMPLETED = {"type": "completed"}


def image(index: int, picture: bytes = b"picture") -> dict[str, Any]:
    return {"type": "image", "index": index, "seed": 5 + index, "b64_json": b64encode(picture).decode()}


def ended(index: int, how: str) -> dict[str, Any]:
    return {"type": how, "index": index, "seed": 5 + index}


class Server(httpx2.AsyncBaseTransport):
    """Answers every POST with these events; the last may be an exception, where the connection breaks."""

    def __init__(self, *events: dict[str, Any] | Exception, status: int = 200, **headers: str) -> None:
        self._events, self._status, self._headers = events, status, headers

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "DELETE":
            return httpx2.Response(200)
        return httpx2.Response(self._status, headers=self._headers, content=self._content())

    async def _content(self) -> Any:
        for event in self._events:
            await asyncio.sleep(0.01)
            if isinstance(event, Exception):
                raise event
            yield f"data: {json.dumps(event)}\n\n".encode()


def clients(*events: dict[str, Any] | Exception, status: int = 200, **headers: str) -> Clients:
    return Clients("http://service", Server(*events, status=status, **headers))


@pytest.mark.parametrize(
    ("events", "fate"),
    [
        ([image(0), image(1), COMPLETED], Fate.ANSWERED),
        ([image(0), COMPLETED], Fate.LOST),
        ([image(0), ended(1, "failed"), COMPLETED], Fate.LOST),
        ([image(0), ended(1, "cancelled"), COMPLETED], Fate.LOST),
        ([image(0), {"type": "error"}], Fate.LOST),
        ([image(0), image(1)], Fate.TORN),
        ([image(0), httpx2.ReadError("cut")], Fate.TORN),
        ([httpx2.ConnectError("nobody there")], Fate.UNREACHED),
    ],
)
async def test_a_client_that_waits_knows_what_became_of_its_request(events: Sequence[Any], fate: Fate) -> None:
    outcome = await clients(START, *events).ask(BODY)
    assert outcome.fate is fate
    assert len(outcome.pictures) == sum(isinstance(event, dict) and event["type"] == "image" for event in events)


@pytest.mark.parametrize(
    ("events", "fate"),
    [
        ([image(0), ended(1, "cancelled"), COMPLETED], Fate.CANCELLED),
        ([ended(0, "cancelled"), ended(1, "cancelled"), COMPLETED], Fate.CANCELLED),
        ([image(0), image(1), COMPLETED], Fate.ANSWERED),
        ([image(0), COMPLETED], Fate.LOST),
        ([image(0), ended(1, "failed"), COMPLETED], Fate.LOST),
    ],
)
async def test_of_a_cancelled_request_every_image_comes_or_is_cancelled(events: Sequence[Any], fate: Fate) -> None:
    outcome = await clients(START, *events).cancel(BODY, 0)
    assert outcome.fate is fate
    assert len(outcome.pictures) == sum(event["type"] == "image" for event in events), (
        "what came before is compared too"
    )


async def test_refusals_errors_and_those_who_leave() -> None:
    refused = await clients(status=429, **{"Retry-After": "7"}).ask(BODY)
    assert (refused.fate, refused.retry_after_s) == (Fate.REFUSED, 7)
    assert (await clients(status=429).ask(BODY)).fate is Fate.ERROR, "it must say when to come again"
    assert (await clients(status=500).ask(BODY)).fate is Fate.ERROR
    left = await clients(START, image(0), *[{"type": "progress"}] * 100).leave(BODY, "/stream", 0.1)
    assert (left.fate, len(left.pictures)) == (Fate.LEFT, 1)


async def test_a_tally_sees_duplicates_and_other_pictures() -> None:
    tally = Tally()
    tally.add(BODY, await clients(image(0), image(1), COMPLETED).ask(BODY))
    assert not checks.delivered(Row("", tally, 0))
    twice = tally.fresh()
    twice.add(BODY, await clients(image(0), image(0), image(1), COMPLETED).ask(BODY))
    assert (twice.duplicates, twice.wrong) == (1, 0)
    other = tally.fresh()
    other.add(BODY, await clients(image(0), image(1, b"another"), COMPLETED).cancel(BODY, 0))
    assert (other.duplicates, other.wrong) == (0, 1)
    assert checks.delivered(Row("", twice, 0))
    assert checks.delivered(Row("", other, 0))


@pytest.mark.parametrize(("fate", "may_tear", "broken"), [
    (Fate.LOST, True, True), (Fate.ERROR, True, True), (Fate.TORN, True, False), (Fate.TORN, False, True),
    (Fate.UNREACHED, True, False), (Fate.UNREACHED, False, True),
    (Fate.REFUSED, False, False), (Fate.LEFT, False, False),
])  # fmt: skip
def test_what_was_lost_or_torn_is_broken(fate: Fate, may_tear: bool, broken: bool) -> None:
    tally = Tally()
    tally.add(BODY, Outcome(fate))
    row = Row("an event", tally, 1, 2.0, may_tear)
    assert bool(checks.delivered(row)) is broken
    counted = (
        f"| an event | {fate is not Fate.UNREACHED:d} | 1 | "
        f"{fate is Fate.LOST:d} | 0 | {fate is Fate.ERROR:d} | {fate is Fate.TORN:d} | 2.0 s |"
    )
    assert checks.table([row]).splitlines()[-1] == counted


def state(images: int = 0, objects: int = 0, pid: int = 1, mb: float = 100, **holds: int) -> State:
    memory = {(part, pid): mb * 1e6 for part in (Part.REPLICA, Part.INGRESS)}
    return State(images, objects, {(Part.REPLICA, pid): Counter(holds)}, memory)


def test_whatever_is_left_over_is_seen() -> None:
    start = state(objects=2, Job=1)
    assert not checks.left_over(start, state(objects=1, Job=1))
    assert not checks.left_over(start, state(pid=2, Job=1)), "another process may hold as much"
    for left in (state(images=1), state(objects=3), state(Job=2), state(pid=2, Lease=1)):
        assert len(checks.left_over(start, left)) == 1
    assert not checks.left_over(start, state(Job=2).least(state(Job=1, Lease=1))), "each was there for a moment"
    assert checks.left_over(start, state(Job=2).least(state(Job=3)))


def test_a_process_that_lived_throughout_must_not_grow() -> None:
    assert not checks.grown(state(), state(mb=104))
    assert len(checks.grown(state(), state(mb=106))) == 2
    assert len(checks.grown(state(), state(pid=2))) == 2, "there is nothing to compare"
    assert not checks.slower(0.2, 0.29)
    assert checks.slower(0.2, 0.31)


def test_a_fault_has_happened_if_the_process_is_another() -> None:
    def replicas(*pids: int) -> dict[Part, frozenset[int]]:
        return {Part.REPLICA: frozenset(pids)}

    assert not checks.happened(Part.REPLICA, 2, replicas(1, 2), replicas(1, 3))
    for after in (replicas(1, 2), replicas(1), replicas(1, 2, 3)):
        assert checks.happened(Part.REPLICA, 2, replicas(1, 2), after)


def test_promises_of_a_flood() -> None:
    def flood(answers_s: float = 5.0, told_s: float = 4.0, health_s: float = 0.1) -> Flood:
        tally = Tally(images=100, seconds=[answers_s] * 10)
        return Flood(tally, 20.0, 40, (Refusal(told_s, 4.0),) * 10, (health_s,) * 10)

    assert not checks.kept_promises(flood())
    for broken in (flood(answers_s=9), flood(told_s=1), flood(told_s=10), flood(health_s=6)):
        assert len(checks.kept_promises(broken)) == 1
    assert checks.slow_health([0.01] * 97 + [0.06] * 3)
    assert not checks.slow_health([0.01] * 100)


def test_stages_that_nobody_met_are_named() -> None:
    met = Counter(Stage)
    assert not checks.stages_missed(met)
    assert checks.stages_missed(met - Counter([Stage.VAE])) == ["nobody left while an image was in the VAE"]


def test_there_is_room_again_once_the_queue_would_take_the_request() -> None:
    now = 0.0
    admission = Admission(4, lambda: 2)
    room = Room(admission, clock=lambda: now)
    admission.join(tickets(5), lambda: None)
    with pytest.raises(TooManyWaiting) as refusal:
        admission.admit(3, 2, 1.0)
    now = 1.0
    admission.leave(tickets(5)[0])
    assert not room.refusals, "one place of two"
    admission.join(tickets(6)[5:], lambda: None)  # whoever takes it
    now = 2.0
    admission.leave(tickets(5)[1])
    assert room.refusals == [Refusal(refusal.value.retry_after_s or 0, 2.0)]
    assert room.cancelled == {Stage.ROOM: 2}
