"""Four replicas that only wait, and who calls them as the ingress does.

In a module of their own, since their processes import it: the tests' own modules import diffusers, which takes each of
them seven seconds of the processor.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.background import background
from serve_app.errors import SlotReturned
from serve_app.fanout.admission import Admission
from serve_app.fanout.dispatch import Dispatcher
from serve_app.fanout.order import Ticket
from serve_app.fanout.placement import Placement
from serve_app.fanout.pool import Pool
from serve_app.messages import Call, OpenCalls, ReplicaStatus
from tests.fakes import REPLICA

REPLICAS = 4
CAPACITY = 4
MAX_OPEN = 2 * CAPACITY


class Caller:
    """Calls replicas from inside the cluster, as the ingress does."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._replicas = replicas
        self._pool = Pool(replicas)
        self._admission = Admission(10_000, lambda: self._pool.status.capacity)
        self._dispatcher = Dispatcher(self._admission, lambda: self._pool.status.replicas, Placement())
        self._fan_outs = 0

    async def fan_out(self, calls: int, seconds: float) -> list[int]:
        """Return how many of the calls each replica got, most first."""
        answers = await self._call(calls, [seconds] * calls)
        return sorted(Counter(replica for replica, _ in answers).values(), reverse=True)

    async def most_at_once(self, calls: int, seconds: float, failing: float) -> float:
        """Return the most calls that a replica had at once while a part of them failed to be sent."""
        answers = await self._call(calls, [seconds] * calls, failing)
        return max(open_ for _, open_ in answers)

    async def ping_while_full(self) -> tuple[int, float]:
        """Broadcast to replicas that have all the calls they may; return how many answered and the seconds it took."""
        full = asyncio.create_task(self._call(2 * REPLICAS * MAX_OPEN, [3] * 2 * REPLICAS * MAX_OPEN))
        await asyncio.sleep(0.5)
        started = time.monotonic()
        answers = await self._replicas.broadcast("ping").results_async(timeout_s=10)
        elapsed = time.monotonic() - started
        full.cancel()
        return len(answers), elapsed

    async def cancel_half(self, calls: int) -> list[int]:
        """Cancel every other call while all replicas are full, and return where the rest landed."""
        answers = await self._call(calls, [0.2] * calls, cancel_every_other_after=0.05)
        return sorted(Counter(replica for replica, _ in answers).values(), reverse=True)

    async def to_nobody(self) -> str:
        """Call a replica that is not there."""
        try:
            await self._replicas.work.remote(0, Call("caller", 0, 5, "gone"))
        except SlotReturned:
            return "returned"
        return "answered"

    async def to_anybody(self, calls: int) -> int:
        """Make calls that name no replica, and return how many are answered."""
        return len(await asyncio.gather(*[self._replicas.work.remote(0.01, Call("caller", 0)) for _ in range(calls)]))

    async def _call(
        self, calls: int, seconds: Sequence[float], failing: float = 0, cancel_every_other_after: float | None = None
    ) -> list[tuple[str, float]]:
        self._fan_outs += 1
        tickets = [Ticket(self._fan_outs, self._fan_outs, index) for index in range(calls)]

        async def one(ticket: Ticket) -> tuple[str, float]:
            while True:
                try:
                    async with self._dispatcher.turn(ticket, set()) as replica:
                        if ticket.index % 20 < 20 * failing:
                            replica = "gone"  # the send fails, and it is sent once more
                            failed.append(ticket.index)
                            if failed.count(ticket.index) > 1:
                                break
                        answer: tuple[str, float] = await self._replicas.work.remote(
                            seconds[ticket.index], Call("caller", ticket.index, 60, replica)
                        )
                        return answer
                except SlotReturned:
                    continue
            return "", 0

        failed: list[int] = []
        async with background(self._pool.keep_polling(self._dispatcher.look)):
            async with asyncio.timeout(20):
                while self._pool.status.ready < REPLICAS:  # noqa: ASYNC110 - as a request would find it
                    await asyncio.sleep(0.01)
            self._admission.join(tickets, lambda: None)
            tasks = [asyncio.create_task(one(ticket)) for ticket in tickets]
            try:
                if cancel_every_other_after is not None:
                    await asyncio.sleep(cancel_every_other_after)
                    for task in tasks[1::2]:
                        task.cancel()
                    tasks = tasks[::2]
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                for ticket in tickets:
                    self._admission.leave(ticket)


class Worker:
    def __init__(self) -> None:
        self._open = 0

    async def work(self, seconds: float, _: Call) -> tuple[str, float]:
        """Return this replica's id and how many calls it had when this one began."""
        self._open += 1
        open_ = self._open
        try:
            await asyncio.sleep(seconds)
        finally:
            self._open -= 1
        return serve.get_replica_context().replica_id.unique_id, open_

    async def poll(self, _: OpenCalls) -> ReplicaStatus:
        return replace(REPLICA, id=serve.get_replica_context().replica_id.unique_id, capacity=CAPACITY)

    def ping(self) -> str:
        return "pong"
