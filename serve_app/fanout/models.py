"""All models that an ingress replica serves: a fan-out each, and the generations of all."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeVar

from serve_app import __version__
from serve_app.background import background
from serve_app.config import ONLY_MODEL, AppArgs
from serve_app.fanout.fanout import FanOut
from serve_app.fanout.generations import Generations
from serve_app.fanout.peers import Peers
from serve_app.fanout.pool import Pool
from serve_app.metrics import PAUSED, TRAJECTORY_BYTES, Metrics
from serve_app.readings import Found, Reading
from serve_app.recipe import NO_CHANGES, Changes
from serve_app.schemas import Cancelled, Health, ModelHealth, ModelStatus, ReplicaCount, Resumed, ServiceStatus

_WATCH_INTERVAL_S = 3.0
_UNSEEN = 2
"""After how many looks in a row an ingress replica that Serve passes no calls to counts as replaced: it may have lost
sight of it for a moment, as when its controller starts again.
"""
_READIEST = ("ready", "waking", "asleep", "starting")

Said = TypeVar("Said", ModelHealth, ModelStatus)


class Models:
    """Sums up what the models are and do; `of` is the one of a name. `pools` are their replicas, by the same names."""

    def __init__(self, pools: Mapping[str, Pool], peers: Peers, args: AppArgs, metrics: Metrics) -> None:
        self.generations = Generations(peers, args)
        self._pools, self._peers, self._metrics = pools, peers, metrics
        self._fan_outs = {
            name: FanOut(pools[name], self.generations, own, metrics, name) for name, own in args.served.items()
        }
        self._refused: str | None = None

    def of(self, name: str) -> FanOut:
        """Return what generates with a model: the one of a name, ONLY_MODEL where there is one without."""
        return self._fan_outs[name]

    def reconfigure(self, args: AppArgs) -> None:
        """Take other settings for what is asked from now on; the models are the same."""
        self._refused = None
        self.generations.take(args)
        for name, own in args.served.items():
            self._fan_outs[name].reconfigure(own)

    def refuse_settings(self, why: str) -> None:
        """Say in the health that changed settings could not be used."""
        self._refused = f"the changed settings were refused, those before still hold: {why}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep an eye on all replicas for as long as the context is open."""
        async with AsyncExitStack() as stack:
            for fan_out in self._fan_outs.values():
                await stack.enter_async_context(fan_out.running())
            await stack.enter_async_context(background(self._keep_watching()))
            stack.push_async_callback(self.generations.close)
            yield

    async def _keep_watching(self) -> None:
        """Keep what Serve says of each model's replicas fresh, by one question for all, until cancelled.

        Once this ingress replica is being replaced, end what is paused in it.
        """
        unseen = 0
        while True:
            images, kept = self.generations.paused
            unseen = unseen + 1 if images and await self._peers.has_left() else 0
            if unseen >= _UNSEEN:
                self.generations.end_paused()
            self._metrics.set(PAUSED, images)
            self._metrics.set(TRAJECTORY_BYTES, kept)
            said = await self._peers.deployed([pool.deployment for pool in self._pools.values()])
            for pool in self._pools.values():
                pool.deployed = said.get(pool.deployment, pool.deployed)
            await asyncio.sleep(_WATCH_INTERVAL_S)

    def note_start(self, deployment: str, replica: str, words: str) -> None:
        """A replica says how far its start is."""
        for pool in self._pools.values():
            if pool.deployment == deployment:
                pool.starts.note(replica, words)

    def health(self) -> Health:
        """Return the health of the readiest model: a probe that took the ingress out would take them all."""
        each = {name: fan_out.health() for name, fan_out in self._fan_outs.items()}
        troubles = [f"{name}: {one.message}" if name else one.message for name, one in each.items() if one.message]
        return Health(
            status="stopping"
            if self.generations.draining
            else min((one.status for one in each.values()), key=_READIEST.index),
            replicas=_sum([one.replicas for one in each.values()]),
            version=__version__,
            message=self._refused or "; ".join(troubles) or None,
            models=_named(each),
        )

    def status(self) -> ServiceStatus:
        """Return how busy all models are together, and each."""
        each = {name: fan_out.status() for name, fan_out in self._fan_outs.items()}
        return ServiceStatus(
            replicas=_sum([one.replicas for one in each.values()]),
            images_in_flight=sum(one.images_in_flight for one in each.values()),
            images_waiting=sum(one.images_waiting for one in each.values()),
            images_per_second=round(sum(one.images_per_second for one in each.values()), 3),
            models=_named(each),
        )

    # What is of any model, asked by id.

    def reopen(self, id: str, after: int) -> AbstractAsyncContextManager[Reading]:
        return self.generations.reopen(id, after)

    async def find(self, id: str) -> Found:
        return await self.generations.find(id)

    async def cancel(self, id: str, index: int | None = None) -> Cancelled:
        return await self.generations.cancel(id, index)

    async def resume_images(
        self, id: str, images: Collection[int] | None = None, changes: Changes = NO_CHANGES
    ) -> Resumed:
        return await self.generations.resume_images(id, images, changes)


def _sum(counts: Sequence[ReplicaCount]) -> ReplicaCount:
    return ReplicaCount(ready=sum(one.ready for one in counts), target=sum(one.target for one in counts))


def _named(each: dict[str, Said]) -> dict[str, Said]:
    """Return what is said of models that have names."""
    return {name: said for name, said in each.items() if name != ONLY_MODEL}
