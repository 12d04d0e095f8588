"""Replicas that can generate nothing any more return their slots, take no others and are replaced."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ray import serve
from ray.serve import RunTarget
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.config import EngineConfig
from serve_app.errors import SlotReturned
from serve_app.messages import Call, Generated, OpenCalls, ReplicaStatus
from tests.conftest import make_slot
from tests.integration.conftest import Cluster, eventually, tiny_args
from tests.integration.faulty import BREAKS_THE_DEVICE, HANGS, build

NAME = "faulty"
STALL_TIMEOUT_S = 5.0
CALLER = "/a-test"


@pytest.fixture(scope="module")
def replicas(cluster: Cluster, tiny_path: Path) -> Iterator[DeploymentHandle]:
    args = tiny_args(tiny_path, num_replicas=1, engine=EngineConfig(max_batch_size=2, stall_timeout_s=STALL_TIMEOUT_S))
    serve.run_many([RunTarget(build(args), name=NAME, route_prefix=f"/{NAME}")])
    yield serve.get_deployment_handle("Replica", NAME)
    serve.delete(NAME)


def status(handle: DeploymentHandle) -> ReplicaStatus | None:
    """Return the replica's status, or None while it is being replaced."""
    try:
        answers = handle.broadcast("status").results(timeout_s=10, return_exceptions=True)
    except DeploymentUnavailableError:
        return None
    return next((answer for answer in answers if isinstance(answer, ReplicaStatus)), None)


@pytest.mark.parametrize("fault", [HANGS, BREAKS_THE_DEVICE], ids=["hangs", "breaks the device"])
async def test_a_faulty_replica_returns_every_slot_takes_no_others_and_is_replaced(
    replicas: DeploymentHandle, fault: dict[str, int]
) -> None:
    """Three slots: two in the batch, one of which brings the fault about, and one that waits."""
    await asyncio.to_thread(eventually, lambda: (now := status(replicas)) and now.fault is None, 60)
    before = await asyncio.to_thread(status, replicas)
    assert before is not None
    polls = asyncio.create_task(keep_polling(replicas))
    began = time.monotonic()
    long = make_slot(num_inference_steps=998, width=256, height=256)
    calls = [replicas.generate.remote(long, Call(CALLER, 0))]
    # Calls may overtake each other; the faulty slot must be generated beside another.
    await asyncio.to_thread(eventually, lambda: (now := status(replicas)) and now.active == 1)
    calls += [
        replicas.generate.remote(slot, Call(CALLER, number)) for number, slot in ((1, make_slot(**fault)), (2, long))
    ]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    returned = time.monotonic() - began
    assert sorted(isinstance(end, SlotReturned) and end.begun for end in ends) == [False, True, True], ends
    assert all(isinstance(end, SlotReturned) for end in ends), ends
    now = await asyncio.to_thread(status, replicas)
    assert now is not None
    assert now.id == before.id
    assert now.fault is not None
    assert (now.active, now.waiting) == (0, 0)
    with pytest.raises(SlotReturned):
        await replicas.generate.remote(make_slot(), Call(CALLER, 9))
    await asyncio.to_thread(
        eventually, lambda: (now := status(replicas)) and now.id != before.id and now.fault is None, 60
    )
    print(f"returned after {returned:.1f} s, replaced after {time.monotonic() - began:.1f} s")
    polls.cancel()
    assert isinstance(await replicas.generate.remote(make_slot(), Call(CALLER, 10)), Generated)


async def keep_polling(handle: DeploymentHandle) -> None:
    while True:
        await asyncio.sleep(0.5)
        with suppress(DeploymentUnavailableError):
            polled = handle.broadcast("poll", OpenCalls(CALLER, 3, frozenset({0, 1, 2})))
            await polled.results_async(return_exceptions=True)
