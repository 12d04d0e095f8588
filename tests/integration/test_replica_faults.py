"""Replicas that can generate nothing any more return their slots, take no others and are replaced."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.background import background
from serve_app.errors import SlotReturned
from serve_app.messages import Call, Generated, OpenCalls, ReplicaStatus, Slot
from tests.conftest import make_slot
from tests.integration.conftest import PAIR, REPLICAS, eventually
from tests.integration.paced import BREAKS_THE_DEVICE, HANGS

CALLER = "/a-test"


@pytest.fixture
def replicas(pair: str) -> DeploymentHandle:
    return serve.get_deployment_handle("Replica", PAIR)


def statuses(handle: DeploymentHandle) -> dict[str, ReplicaStatus]:
    """Return what the replicas that answer say, by id."""
    try:
        answers = handle.broadcast("status").results(timeout_s=10, return_exceptions=True)
    except DeploymentUnavailableError:
        return {}
    return {answer.id: answer for answer in answers if isinstance(answer, ReplicaStatus)}


async def test_faulty_replicas_return_every_slot_take_no_others_and_are_replaced(replicas: DeploymentHandle) -> None:
    """One hangs in a step, the device of the other breaks, each in the middle of a batch while a slot waits."""
    before = await asyncio.to_thread(statuses, replicas)
    assert [status.fault for status in before.values()] == [None] * REPLICAS
    began = time.monotonic()
    async with background(keep_polling(replicas)):
        await asyncio.gather(
            *[fail(replicas, id_, fault) for id_, fault in zip(before, (HANGS, BREAKS_THE_DEVICE), strict=True)]
        )
        await until(lambda: len(new := statuses(replicas)) == REPLICAS and not before.keys() & new.keys(), 90)
    print(f"replaced after {time.monotonic() - began:.1f} s")
    assert isinstance(await replicas.generate.remote(make_slot(), Call(CALLER, 10)), Generated)


async def fail(replicas: DeploymentHandle, id_: str, fault: dict[str, int]) -> None:
    """Let a replica fail with three slots: two in the batch, one of which is faulty, and one that waits."""
    long = make_slot(num_inference_steps=998, width=256, height=256)

    def generate(number: int, slot: Slot) -> Awaitable[Generated]:
        """Call this very replica: one that takes its place has no part in this."""
        response: Awaitable[Generated] = replicas.generate.remote(slot, Call(CALLER, number, replica=id_))
        return response

    # One by one, since calls may overtake each other.
    calls = [generate(0, long)]
    await until(lambda: statuses(replicas)[id_].active == 1)
    calls.append(generate(1, make_slot(**fault)))
    await until(lambda: (now := statuses(replicas)[id_]).active == 2 or now.fault)
    calls.append(generate(2, long))
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(isinstance(end, SlotReturned) and end.begun for end in ends) == [False, True, True], ends
    assert all(isinstance(end, SlotReturned) for end in ends), ends
    now = (await asyncio.to_thread(statuses, replicas))[id_]
    assert now.fault is not None
    assert (now.active, now.waiting) == (0, 0)
    with pytest.raises(SlotReturned):
        await generate(9, make_slot())


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    await asyncio.to_thread(eventually, condition, seconds)


async def keep_polling(handle: DeploymentHandle) -> None:
    while True:
        await asyncio.sleep(0.5)
        with suppress(DeploymentUnavailableError):
            polled = handle.broadcast("poll", OpenCalls(CALLER, 10, frozenset(range(10))))
            await polled.results_async(return_exceptions=True)
