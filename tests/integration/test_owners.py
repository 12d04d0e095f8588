"""Replicas work for callers that live, and as long as they wait."""

import asyncio
import threading
import time
from contextlib import suppress

import httpx2
import psutil
import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.errors import SlotFailed, SlotReturned
from serve_app.messages import Call, ReplicaStatus
from serve_app.replica.leases import LEASE_S
from tests.conftest import make_slot
from tests.integration.conftest import APP, SMALL, Running, eventually, own_processes

LONG = {"width": 64, "height": 64, "num_inference_steps": 998}


@pytest.fixture
def replicas(app: Running) -> DeploymentHandle:
    return serve.get_deployment_handle("Replica", APP)


def busy(handle: DeploymentHandle) -> int:
    statuses: list[ReplicaStatus] = handle.broadcast("status").results(timeout_s=10)
    return sum(r.active + r.waiting for r in statuses)


def processes(deployment: str) -> list[psutil.Process]:
    return own_processes(f"ServeReplica:{APP}:{deployment}")


def ready(http: httpx2.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx2.HTTPError:
        return False


@pytest.mark.parametrize("route", ["generate", "stream"])
def test_the_images_of_an_ingress_that_is_killed_are_dropped(
    app: Running, replicas: DeploymentHandle, route: str
) -> None:
    url = app.url
    body = {"prompt": "a", **LONG, "num_images": 8}

    def ask() -> None:
        with suppress(httpx2.HTTPError):
            httpx2.post(f"{url}/{route}", json=body, timeout=60)

    client = threading.Thread(target=ask)
    client.start()
    eventually(lambda: busy(replicas) == 8)
    (ingress,) = processes("Ingress")
    ingress.kill()
    killed = time.monotonic()
    eventually(lambda: busy(replicas) == 0, seconds=LEASE_S + 2)
    print(f"idle {time.monotonic() - killed:.1f} s after the kill")
    client.join(60)
    eventually(lambda: ready(app.http))
    started = time.monotonic()
    answer = httpx2.post(f"{url}/generate", json={"prompt": "a", **SMALL, "num_images": 2}, timeout=60)
    print(f"answered after {time.monotonic() - started:.1f} s")
    assert answer.status_code == 200


def test_a_replica_that_was_frozen_finds_its_caller_gone(replicas: DeploymentHandle) -> None:
    replicas.generate.remote(make_slot(**LONG), Call("/somebody", 0))
    eventually(lambda: busy(replicas) == 1)
    frozen = processes("Replica")
    for process in frozen:
        process.suspend()
    time.sleep(LEASE_S)
    for process in frozen:
        process.resume()
    eventually(lambda: busy(replicas) == 0, seconds=3)


async def test_a_call_is_dropped_at_its_own_deadline(replicas: DeploymentHandle) -> None:
    response = replicas.generate.remote(make_slot(**LONG), Call("/somebody", 0, timeout_s=1))
    with pytest.raises(SlotFailed) as failure:
        await response
    assert failure.value.type == "deadline_exceeded"
    await asyncio.to_thread(eventually, lambda: busy(replicas) == 0, 1)


async def test_the_slot_of_a_caller_that_never_polls_and_is_no_actor_is_returned(replicas: DeploymentHandle) -> None:
    with pytest.raises(SlotReturned):
        async with asyncio.timeout(LEASE_S + 2):
            await replicas.generate.remote(make_slot(**LONG), Call("/somebody", 0))
    await asyncio.to_thread(eventually, lambda: busy(replicas) == 0, 1)
