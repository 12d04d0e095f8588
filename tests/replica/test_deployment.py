"""What a replica watches of itself, without Serve."""

import asyncio
import math
import threading
from collections.abc import Sequence
from typing import Any
from unittest.mock import Mock

import pytest

from serve_app.adapters import Version
from serve_app.config import AppArgs, ModelConfig
from serve_app.errors import AdapterError, CheckpointError
from serve_app.messages import Call, ReadAdapters, new_caller
from serve_app.recipe import Lora
from serve_app.replica import deployment, leases
from serve_app.replica.batching import Load
from serve_app.replica.demand import Demand
from serve_app.replica.deployment import Replica
from serve_app.replica.leases import Leases
from serve_app.replica.lora.sets import NO_ADAPTERS, Adapters
from serve_app.threads import Threads


class Engine:
    """In place of an engine: counts the looks."""

    def __init__(self) -> None:
        self.looks = asyncio.Semaphore(0)

    def look_for_stalls(self) -> None:
        self.looks.release()

    def load(self) -> Load:
        return Load(0, 0, 0)

    def stop(self) -> None: ...


class Uncounted:
    """In place of the replica's metrics."""

    def look(self, load: Load, checkpoint: Any) -> None: ...


async def started(**args: Any) -> Replica:
    replica = Replica.__new__(Replica)
    await Replica.__init__(replica, AppArgs(**args))
    return replica


async def test_a_question_to_ray_that_hangs_delays_no_look_for_stalls_and_no_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, held, asked = Engine(), Leases(), asyncio.Event()
    dropped: list[Exception | None] = []

    async def start(replica: Any, _: AppArgs) -> None:
        replica._engine, replica._leases, replica._demand = engine, held, Demand()
        replica._counting, replica._checkpoint = Uncounted(), None

    async def hang(_: str) -> bool:
        asked.set()
        return await asyncio.Future()

    monkeypatch.setattr(leases, "LEASE_S", 0.0)
    monkeypatch.setattr(leases, "CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr(Replica, "_start", start)
    monkeypatch.setattr(deployment, "_lives", hang)
    replica = await started()
    with held.held(Call(new_caller("an ingress"), 0, math.inf), dropped.append):
        await asyncio.wait_for(asked.wait(), 10)
        engine.looks = asyncio.Semaphore(0)
        with held.held(Call(new_caller("another"), 0, timeout_s=0), dropped.append):
            for _ in range(3):
                await asyncio.wait_for(engine.looks.acquire(), 10)
    assert len(dropped) == 1
    for check in replica._checks:
        check.cancel()


async def test_a_start_that_hangs_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(deployment, "_LONGEST_START_S", 0.2)
    monkeypatch.setattr("serve_app.replica.loading.load", lambda _: end.wait(60))
    with pytest.raises(RuntimeError, match="the start has not ended for 0 s"):
        await started()
    end.set()


async def test_a_start_whose_model_is_nowhere_ends_before_its_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "importing", Mock(side_effect=AssertionError))
    with pytest.raises(CheckpointError, match="no file or folder /no/such/folder"):
        await started(model=ModelConfig(path="/no/such/folder"))


async def test_a_model_without_room_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.replica.loading.load", Mock(side_effect=RuntimeError("CUDA out of memory. Tried")))
    with pytest.raises(RuntimeError, match=r"there is no memory for the model.*lower adapters\.resident_sets"):
        await started()


async def test_a_timeout_within_the_start_keeps_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: AppArgs) -> None:
        raise TimeoutError("the hub does not answer")

    monkeypatch.setattr("serve_app.replica.loading.load", load)
    with pytest.raises(TimeoutError, match="the hub does not answer"):
        await started()


class Store:
    """In place of the stores of adapters: knows those of scale 1, and hangs where it would have to read."""

    def __init__(self) -> None:
        self.woken = threading.Event()

    def at_hand(self, loras: Sequence[Lora]) -> Adapters | None:
        return NO_ADAPTERS if loras[0].scale == 1 else None

    def read(self, _: Sequence[Lora]) -> Adapters:
        self.woken.wait(60)
        return NO_ADAPTERS

    def check(self, _: Sequence[Lora]) -> dict[Version, str]:
        return {}


@pytest.fixture
def own_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve gives replicas their ids."""
    monkeypatch.setattr("serve_app.replica.deployment._own_id", lambda: "abc")


@pytest.mark.usefixtures("own_id")
async def test_a_disk_that_hangs_holds_up_no_adapters_that_are_there_and_no_other_threads() -> None:
    replica, store = Replica.__new__(Replica), Store()
    replica._loras, replica._threads = store, Threads(2, "adapters")  # type: ignore[assignment]  # as above
    hung = [asyncio.create_task(replica.check_adapters([Lora(name="new", scale=0.5)])) for _ in range(40)]
    try:
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
            assert await replica.check_adapters([Lora(name="known", hash="sha256:0")]) == ReadAdapters("abc", {})
            assert await asyncio.to_thread(lambda: "free") == "free"
        assert not any(task.done() for task in hung)
    finally:
        store.woken.set()
        await asyncio.gather(*hung)


async def test_what_is_wrong_with_adapters_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    replica, store, wrong = Replica.__new__(Replica), Store(), AdapterError("new", "is damaged")
    monkeypatch.setattr(store, "read", Mock(side_effect=wrong))
    replica._loras, replica._threads = store, Threads(2, "adapters")  # type: ignore[assignment]  # as above
    assert await replica.check_adapters([Lora(name="new", scale=0.5)]) is wrong
