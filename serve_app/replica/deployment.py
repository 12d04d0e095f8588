"""The Serve replica that runs an engine: one actor, one GPU."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import ray
from ray import serve

from serve_app.config import AppArgs
from serve_app.errors import SlotReturned
from serve_app.messages import Call, Generated, OpenCalls, ReplicaStatus, Slot, SlotEvent
from serve_app.metrics import ReplicaMetrics
from serve_app.recipe import Output, Recipe, SchedulerName

logger = logging.getLogger("ray.serve")


class Replica:
    """Generates slots with one loaded model. Ready once it has generated its warm-up images."""

    # torch is imported inside the methods: processes that only build or call this deployment do not need it.

    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        from serve_app.replica.engine import Engine
        from serve_app.replica.loading import load
        from serve_app.replica.prompts import PromptReader

        self._args = args
        self._calls: dict[asyncio.Task[Any], Call] = {}
        started = time.perf_counter()
        self._checkpoint = await asyncio.to_thread(load, args)
        loaded = time.perf_counter()
        self._engine = Engine(self._checkpoint, args.engine, args.preview, ReplicaMetrics(args.engine.max_batch_size))
        self._reader = PromptReader(self._checkpoint.pipe)
        slots = _warm_up_slots(args, self._checkpoint.scheduler)
        await asyncio.wrap_future(self._engine.start(slots))
        await asyncio.wrap_future(self._checkpoint.named)  # an error in the weights' files must end the start
        for slot in slots:
            await self.generate(slot, Call("warm-up", 0))
        logger.info(
            "ready: %s loaded in %.1f s, warmed up in %.1f s",
            self._checkpoint.info.name,
            loaded - started,
            time.perf_counter() - loaded,
        )

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.stop()

    async def generate(self, slot: Slot, call: Call) -> Generated:
        """Generate a slot. Raises SlotFailed, SlotReturned."""
        async with aclosing(self.stream(slot, call)) as events:
            async for event in events:
                if isinstance(event, Generated):
                    return event
        raise AssertionError("the last event of a slot must be its picture")

    async def stream(self, slot: Slot, call: Call) -> AsyncGenerator[SlotEvent]:
        """Generate a slot and yield its events; the picture is the last. Raises SlotFailed, SlotReturned."""
        from serve_app.replica.mailbox import Mailbox

        task = asyncio.current_task()
        assert task is not None, "Serve runs calls in tasks"
        if call.model not in (None, self._checkpoint.info.hash):
            raise SlotReturned(_own_id(), "it has other weights than the request asks for")
        mailbox = Mailbox()
        job = self._engine.submit(slot, mailbox.post)
        self._calls[task] = call  # by task: Serve may send a call twice
        try:
            async for event in mailbox.events():
                if isinstance(event, Generated) and event.pixels is not None:
                    yield replace(event, pixels=ray.put(event.pixels))
                else:
                    yield event
        finally:
            del self._calls[task]
            self._engine.cancel(job)

    async def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that the text encoders do not see; empty if they see all of it."""
        return self._reader.cut_off(prompt)

    async def poll(self, open_calls: OpenCalls) -> ReplicaStatus:
        """Return this replica's status, and cancel calls that the caller no longer waits for.

        Their cancellation was lost, or is still on its way.
        """
        for task, call in self._calls.items():
            if open_calls.has_given_up(call):
                task.cancel()
        return await self.status()

    async def status(self) -> ReplicaStatus:
        """Return which model this replica runs and how busy it is."""
        load = self._engine.load()
        return ReplicaStatus(
            id=_own_id(),
            model=self._checkpoint.info,
            scheduler=self._checkpoint.scheduler,
            schedulers=self._checkpoint.schedulers,
            prompt_tokens=self._reader.room,
            has_previews=self._checkpoint.preview_vae is not None,
            capacity=self._args.engine.max_batch_size,
            active=load.active,
            waiting=load.waiting,
            finished=load.finished,
        )

    def check_health(self) -> None:
        """Raise if the engine can no longer generate, so that Serve replaces this replica."""
        self._engine.check()


def _own_id() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)


def _warm_up_slots(args: AppArgs, scheduler: SchedulerName) -> list[Slot]:
    """Return slots that use everything once: guidance, a preview, the decoder and a file."""
    return [
        Slot(
            index=0,
            seed=0,
            recipe=Recipe(
                prompt="warm-up",
                width=width,
                height=height,
                num_inference_steps=2,
                guidance_scale=args.model.guidance_scale,
                scheduler=scheduler,
            ),
            output=Output(),
            preview_steps=frozenset({1}),
        )
        for width, height in args.warm_up_sizes
    ]
