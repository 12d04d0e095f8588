"""Leases with a clock of the test's own."""

import math
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from serve_app.errors import SlotFailed, SlotReturned
from serve_app.messages import Call, OpenCalls, new_caller
from serve_app.replica.leases import LEASE_S, Leases

INGRESS, SCRIPT = new_caller("ingress"), new_caller(None)


class Held:
    """Leases, the calls that hold one, and what those that were dropped were told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.leases = Leases(lambda: self.now)
        self.dropped: dict[int, Exception | None] = {}
        self.alive = True
        self.asked = 0
        self.calls = ExitStack()

    def call(self, number: int, caller: str = INGRESS, timeout_s: float = math.inf) -> None:
        def drop(error: Exception | None) -> None:
            assert number not in self.dropped, "once"
            self.dropped[number] = error

        self.calls.enter_context(self.leases.held(Call(caller, number, timeout_s), drop))

    async def after(self, seconds: float) -> None:
        self.now += seconds
        self.leases.drop_late()
        await self.leases.drop_lost(self._lives)

    def poll(self, *numbers: int, caller: str = INGRESS) -> None:
        self.leases.poll(OpenCalls(caller, 10, frozenset(numbers)))

    async def _lives(self, actor: str) -> bool:
        assert actor == "ingress"
        self.asked += 1
        return self.alive


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    with held.calls:
        yield held


async def test_polls_renew_a_lease(held: Held) -> None:
    held.call(0)
    held.call(1, SCRIPT)
    for _ in range(10):
        await held.after(LEASE_S / 2)
        held.poll(0)
        held.poll(1, caller=SCRIPT)
    assert (held.dropped, held.asked) == ({}, 0)


async def test_the_calls_of_a_silent_caller_are_dropped_if_it_has_died(held: Held) -> None:
    held.call(0)
    held.call(1)
    held.call(2, SCRIPT)
    await held.after(LEASE_S / 2)
    held.poll(2, caller=SCRIPT)
    held.alive = False
    await held.after(LEASE_S / 2)
    assert held.dropped == {0: None, 1: None}


async def test_a_silent_caller_that_lives_keeps_its_calls_and_is_asked_for_again(held: Held) -> None:
    """A replica that is being stopped hears no polls."""
    held.call(0)
    await held.after(LEASE_S)
    await held.after(LEASE_S / 2)
    assert (held.dropped, held.asked) == ({}, 1)
    held.alive = False
    await held.after(LEASE_S / 2)
    assert held.dropped == {0: None}


async def test_the_slot_of_a_silent_caller_that_is_no_actor_is_returned(held: Held) -> None:
    held.call(0, SCRIPT)
    await held.after(LEASE_S - 0.1)
    assert held.dropped == {}
    await held.after(0.1)
    assert isinstance(held.dropped[0], SlotReturned)


async def test_a_call_is_dropped_at_its_deadline_however_often_its_caller_polls(held: Held) -> None:
    held.call(0, timeout_s=3)
    held.call(1)
    for _ in range(3):
        assert held.dropped == {}
        held.poll(0, 1)
        await held.after(1)
    assert list(held.dropped) == [0]
    error = held.dropped[0]
    assert isinstance(error, SlotFailed)
    assert error.type == "deadline_exceeded"


async def test_what_a_poll_gives_up_is_dropped_and_only_that(held: Held) -> None:
    held.call(0)
    held.call(1)
    held.call(0 + 20, SCRIPT)
    held.poll(1)
    assert held.dropped == {0: None}


async def test_a_call_that_has_ended_is_not_dropped_and_its_caller_is_forgotten(held: Held) -> None:
    held.call(0)
    held.calls.close()
    held.alive = False
    await held.after(LEASE_S)
    assert (held.dropped, held.asked, held.leases._heard) == ({}, 0, {})


async def test_a_new_call_renews_the_leases_of_its_caller(held: Held) -> None:
    held.alive = False
    held.call(0)
    await held.after(LEASE_S - 1)
    held.call(1)
    await held.after(LEASE_S - 1)
    assert held.dropped == {}
