"""The Serve replica that runs an engine: one actor, one GPU."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import ray
from ray import serve
from ray.exceptions import RayError

from serve_app.background import background
from serve_app.config import AppArgs
from serve_app.errors import ADAPTER_GONE, AdapterError, SlotFailed
from serve_app.messages import Call, Generated, OpenCalls, ReadAdapters, ReplicaStatus, Slot, SlotEvent
from serve_app.quiet import drop_access_log, drop_harmless_warnings
from serve_app.recipe import CHUNK_TOKENS, Embedding, Lora, Output, Recipe
from serve_app.replica.imports import for_good, importing
from serve_app.replica.progress import Progress
from serve_app.threads import Threads, take_short_turns

if TYPE_CHECKING:
    from serve_app.replica.checkpoint import Checkpoint
    from serve_app.replica.embeddings import Embeddings
    from serve_app.replica.lora.sets import Adapters

logger = logging.getLogger("ray.serve")

_SERVE_NAMESPACE = "serve"
_ASK_TIMEOUT_S = 2.0
"""How long Ray may take to say whether an actor lives."""
_READ_AT_ONCE = 4
"""How many threads read adapters. A disk that hangs holds up these alone."""
_LONGEST_START_S = 3600.0
"""A start that takes longer counts as hung. Serve starts another, which finds what was downloaded and compiled."""


class Replica:
    """Generates slots with one loaded model. Ready once it has generated its warm-up images."""

    # torch is imported inside the methods: processes that only build or call this deployment do not need it.

    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        drop_access_log()
        drop_harmless_warnings()  # before the libraries are imported: some warn of that
        try:
            async with asyncio.timeout(_LONGEST_START_S) as patience:
                await self._start(args)
        except TimeoutError as error:
            if not patience.expired():
                raise
            raise RuntimeError(f"the start has not ended for {_LONGEST_START_S:.0f} s") from error
        # Apart: a question to Ray may take long.
        checks = (self._look, self._find_lost_callers, self._report)
        self._checks = [asyncio.create_task(_keep(check)) for check in checks]

    async def _start(self, args: AppArgs) -> None:
        progress = Progress()
        async with background(progress.keep_telling()):
            try:
                await self._prepare(args, progress)
            except (MemoryError, RuntimeError) as error:
                from serve_app.replica.failures import no_room

                if words := no_room(error):
                    raise RuntimeError(words) from error
                raise

    async def _prepare(self, args: AppArgs, progress: Progress) -> None:
        from serve_app.replica.sources import path_here

        began = time.perf_counter()
        take_short_turns()  # weights are loaded beside threads that import and read
        # Before the imports, which take longest: Serve tries a start that failed again and again.
        await asyncio.to_thread(path_here, args.model)
        with importing():
            from serve_app.replica.counting import Counting
            from serve_app.replica.demand import Demand
            from serve_app.replica.embeddings import make_embedding_store
            from serve_app.replica.engine import Engine
            from serve_app.replica.leases import Leases
            from serve_app.replica.loading import load
            from serve_app.replica.lora.store import make_store
            from serve_app.replica.pixels import PixelStore
            from serve_app.replica.scorers import with_others

        self._args = args
        self._scorers = with_others(args.engine.scorers)
        self._leases = Leases()
        self._demand = Demand()
        self._pixels = PixelStore()
        started = time.perf_counter()
        with for_good():
            self._checkpoint = await asyncio.to_thread(load, args)
        loaded = time.perf_counter()
        self._counting = Counting(args)
        self._threads = Threads(_READ_AT_ONCE, "adapters")
        self._loras = make_store(args.adapters, self._checkpoint)
        self._embeddings = make_embedding_store(args.adapters, self._checkpoint)
        sets = 0 if self._loras is None else args.adapters.resident_sets
        self._engine = Engine(self._checkpoint, args.engine, args.preview, self._counting, sets, self._scorers)
        slots = _warm_up_slots(args, self._checkpoint)
        does = "warming up" if args.engine.compile == "none" else "compiling"

        def tell(number: int, of: int) -> None:
            progress.words = f"{does} {number} of {of}"

        await asyncio.wrap_future(self._engine.start(slots, tell))
        self._checkpoint.kept_models.note()
        warm = time.perf_counter()
        await asyncio.wrap_future(self._checkpoint.named)  # an error in the weights' files must end the start
        named = time.perf_counter()
        for slot in slots:
            await self.generate(slot, Call("warm-up", 0))
        logger.info(
            "ready: %s; imports %.1f s, weights %.1f s, models warmed up %.1f s, hash %.1f s more, a picture %.1f s",
            self._checkpoint.info.name,
            started - began,
            loaded - started,
            warm - loaded,
            named - warm,
            time.perf_counter() - named,
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
        async with aclosing(self._events(slot, call)) as events:
            async for event in events:
                yield await self._told(event, slot) if isinstance(event, Generated) else event

    async def _events(self, slot: Slot, call: Call) -> AsyncGenerator[SlotEvent]:
        """Yield the engine's events for a slot for as long as its caller waits. Raises SlotFailed, SlotReturned."""
        from serve_app.replica.mailbox import Mailbox

        task = asyncio.current_task()
        assert task is not None, "Serve runs calls in tasks"
        mailbox = Mailbox()
        if isinstance(slot.canvas, ray.ObjectRef):
            slot = replace(slot, canvas=await slot.canvas)
        try:
            adapters = await self._read(slot.recipe.adapters)
            embeddings = await self._read_embeddings(slot.recipe.embeddings)
        except AdapterError as error:
            raise SlotFailed(ADAPTER_GONE, error.message) from error
        if slot.kept and slot.kept.model != self._checkpoint.info.hash:
            slot = replace(slot, kept=None)  # the model was replaced meanwhile
        job = self._engine.submit(slot, mailbox.post, *adapters, embeddings=embeddings)

        def drop(error: Exception | None) -> None:
            self._engine.cancel(job)
            if error is None:
                task.cancel()
            else:
                mailbox.post(error)

        try:
            with self._leases.held(call, drop):
                async for event in mailbox.events():
                    yield event
        finally:
            self._engine.cancel(job)

    async def _told(self, generated: Generated, slot: Slot) -> Generated:
        """Return a picture with what has no effect on this model, and its pixels left in the object store."""
        from serve_app.replica.conditioning import without_effect

        ignored = (sentence for phase in slot.recipe.phases for sentence in without_effect(phase, self._checkpoint))
        warnings = (*generated.warnings, *dict.fromkeys(ignored))
        pixels = None if generated.pixels is None else await self._pixels.put(generated.pixels)
        return replace(generated, pixels=pixels, warnings=warnings)

    async def check_adapters(
        self, loras: Sequence[Lora], embeddings: Sequence[Embedding] = ()
    ) -> AdapterError | ReadAdapters:
        """Read adapters before a request is accepted, and return which files they are, or what is wrong with them."""
        try:
            await self._read(loras)
            await self._read_embeddings(embeddings)
            unnamed = [lora for lora in loras if lora.hash is None]
            hashes = await self._threads.run(self._loras.check, unnamed) if self._loras and unnamed else {}
        except AdapterError as error:
            return error  # raised, Serve would log it as a fault of this service
        return ReadAdapters(_own_id(), hashes)

    async def _read_embeddings(self, embeddings: Sequence[Embedding]) -> "Embeddings":
        """Return embeddings by name. Raises AdapterError."""
        if not embeddings:
            return {}
        if self._embeddings is None:
            raise AdapterError(embeddings[0].name, "cannot be found: adapters.path names no folder", "embeddings")
        known = self._embeddings.at_hand(embeddings)
        return await self._threads.run(self._embeddings.read, embeddings) if known is None else known

    async def _read(self, loras: Sequence[Lora]) -> "tuple[Adapters, ...]":
        """Return adapters beside the denoising: (adapters,), or () for none. Raises AdapterError."""
        if not loras:
            return ()
        if self._loras is None:
            raise AdapterError(loras[0].name, "cannot be found: adapters.path names no folder")
        known = self._loras.at_hand(loras)
        return (await self._threads.run(self._loras.read, loras) if known is None else known,)

    async def poll(self, open_calls: OpenCalls) -> ReplicaStatus:
        """Return this replica's status, and drop the calls that the caller no longer waits for."""
        self._leases.poll(open_calls)
        self._demand.told(open_calls.caller, open_calls.images_waiting)
        return replace(await self.status(), others=self._leases.of_others(open_calls.caller))

    async def status(self) -> ReplicaStatus:
        """Return which model this replica runs and how busy it is."""
        from serve_app.replica.encode import can_encode

        load = self._engine.load()
        return ReplicaStatus(
            id=_own_id(),
            model=self._checkpoint.info,
            scheduler=self._checkpoint.scheduler,
            schedulers=self._checkpoint.schedulers,
            has_previews=self._checkpoint.preview_vae is not None,
            capacity=self._args.engine.max_batch_size,
            active=load.active,
            waiting=load.waiting,
            finished=load.finished,
            fault=self._engine.fault,
            takes_pictures=can_encode(self._checkpoint.vae),
            adapters=self._engine.adapters,
            scorers=tuple(self._scorers),
            read=frozenset().union(*(store.kept for store in (self._loras, self._embeddings) if store)),
        )

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what `ImagesPolicy` counts on. Serve asks where the number of replicas is not fixed."""
        return self._demand.stats(self._engine.load())

    def check_health(self) -> None:
        """Raise if the engine can no longer generate, so that Serve replaces this replica."""
        self._engine.check()

    async def _look(self) -> None:
        self._engine.look_for_stalls()
        self._demand.look(self._engine.load())
        self._leases.drop_late()

    async def _report(self) -> None:
        self._counting.look(self._engine.load(), self._checkpoint)

    async def _find_lost_callers(self) -> None:
        await self._leases.drop_lost(_lives)


async def _keep(check: Callable[[], Awaitable[None]]) -> None:
    """Check again and again, for as long as the replica lives."""
    from serve_app.replica.leases import CHECK_INTERVAL_S

    while True:
        await asyncio.sleep(CHECK_INTERVAL_S)
        try:
            await check()
        except Exception:
            logger.exception("a check failed")


async def _lives(actor: str) -> bool:
    """Return whether a Serve actor lives; if Ray does not say, it may."""
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            await asyncio.to_thread(ray.get_actor, actor, namespace=_SERVE_NAMESPACE)
    except ValueError:
        return False
    except (RayError, TimeoutError) as error:
        logger.warning("could not ask Ray whether %s lives: %r", actor, error)
    return True


def _own_id() -> str:
    return str(serve.get_replica_context().replica_id.unique_id)


def _warm_up_slots(args: AppArgs, checkpoint: "Checkpoint") -> list[Slot]:
    """Return slots that use everything once, for each size and length of a prompt: guidance, previews, files.

    Where an empty negative prompt is zeros, the UNet has another program for it.
    """
    lengths = range(1, args.engine.warm_up_prompt_chunks + 1)
    two_programs = args.model.guidance_scale > 1 and checkpoint.pipe.config.force_zeros_for_empty_prompt
    return [
        Slot(
            index=0,
            seed=0,
            recipe=Recipe(
                prompt="a " * (CHUNK_TOKENS * (chunks - 1) + 1),
                width=width,
                height=height,
                num_inference_steps=2,
                negative_prompt=negative,
                guidance_scale=args.model.guidance_scale,
                scheduler=checkpoint.scheduler,
            ),
            output=Output(),
            preview_steps=frozenset({1}),
            max_prompt_tokens=CHUNK_TOKENS * chunks,
        )
        for width, height in args.warm_up_sizes
        for chunks in lengths
        for negative in ("", "a")[: 1 + two_programs]
    ]
