"""`python -m benchmarks.soak`: let clients leave and parts of the service die, and count what was lost.

The service runs on several raylets of this machine, with two replicas of a tiny model and two ingress replicas. Each
phase prints what was sent and what became of it. The run fails where anything accepted was lost, delivered twice or
another picture, or where something is left over at the end.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.soak.clients import Clients, Fate, Tally
from benchmarks.soak.cluster import Service, State, open_service, wait_until
from serve_app.config import AdmissionConfig, AppArgs, EngineConfig, LimitsConfig, ModelConfig
from serve_app.models import tiny

_REPLICAS = 2
_PLACES = 8
_CLIENTS = 6
_RECOVERY_S = 180.0
_MEMORY = 1.05
_FROZEN_S = 15.0

Fault = Callable[[Service], None]


@dataclass(frozen=True)
class Size:
    """How much of it: numbers of requests, and seconds of a phase."""

    cancels: int
    flood_s: float
    fault_s: float
    faults: tuple[str, ...]


FULL = Size(1000, 120, 25, ("replica", "ingress", "proxy", "controller", "node", "frozen replica"))
SHORT = Size(60, 5, 6, ("replica", "ingress"))


class Broken(Exception):
    """The service did not keep a promise."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Look for what is lost when clients leave and parts die.")
    parser.add_argument("--short", action="store_true", help="a minute of it")
    parser.add_argument("--seed", type=int, default=1, help="of the clients' chances")
    options = parser.parse_args(arguments)
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder, open_service(_args(tiny.build(Path(folder)))) as service:
        broken = asyncio.run(_soak(service, SHORT if options.short else FULL))
    if broken:
        sys.exit("\n".join(["broken:", *broken]))
    print("nothing was lost")


async def _soak(service: Service, size: Size) -> list[str]:
    """Run all phases; return what was broken."""
    broken: list[str] = []
    clients, tally = Clients(service.url), Tally()

    async def phase(name: str, work: Coroutine[Any, Any, Tally], may_tear: bool = False) -> None:
        started = time.monotonic()
        result = await work
        say(name, f"{result} ({time.monotonic() - started:.0f} s)")
        bad = [Fate.LOST, Fate.ERROR, *([] if may_tear else [Fate.TORN])]
        if any(result.fates[fate] for fate in bad) or result.duplicates or result.wrong:
            broken.append(f"{name}: {result}; {result.details[:3]}")

    await phase("pictures alone", _alone(clients, tally))
    await phase("a first crowd", _crowd(clients, tally.fresh(), 10))
    before, image_s = await _settled(service), await _image_seconds(clients)
    await phase(f"{size.cancels} cancels and hang-ups", _impatient(clients, tally.fresh(), size.cancels))
    say("idle again", f"after {await asyncio.to_thread(wait_until, lambda: service.state().idle, 30):.1f} s")
    await phase(f"a flood for {size.flood_s:g} s", _flood(clients, tally.fresh(), size.flood_s))
    for name in size.faults:
        torn = name in ("ingress", "proxy")  # a connection ends with its other end
        await phase(f"{name} lost", _fault(service, clients, tally.fresh(), name, size.fault_s), may_tear=torn)
    broken += _left_over(before, await _settled(service), image_s, await _image_seconds(clients))
    broken += [f"in the logs: {line}" for line in service.tracebacks()[:10]]
    return broken


async def _alone(clients: Clients, tally: Tally) -> Tally:
    """Generate every picture once, by itself: what all others are compared with."""
    for body in _bodies():
        for index in range(body["num_images"]):
            alone = {**body, "seed": body["seed"] + index, "num_images": 1}
            tally.add(alone, await clients.ask(alone))
    return tally


async def _crowd(clients: Clients, tally: Tally, seconds: float) -> Tally:
    """Let some clients ask without a pause."""
    end = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            await clients.insist(random.choice(_bodies()), tally)

    await asyncio.gather(*[client() for _ in range(_CLIENTS)])
    return tally


async def _impatient(clients: Clients, tally: Tally, requests: int) -> Tally:
    """Hang up or cancel at any time between the first byte and the last, beside clients that wait."""
    places = asyncio.Semaphore(16)

    async def client(number: int) -> None:
        async with places:
            body, after_s = random.choice(_bodies()), random.uniform(0, 1.5)
            match number % 4:
                case 0:
                    await clients.insist(body, tally)
                case 1:
                    tally.add(body, await clients.cancel(body, after_s))
                case _:
                    tally.add(body, await clients.leave(body, after_s))

    await asyncio.gather(*[client(number) for number in range(requests)])
    return tally


async def _flood(clients: Clients, tally: Tally, seconds: float) -> Tally:
    """Ask for ten times what there is room for."""
    end, health = time.monotonic() + seconds, list[float]()

    async def client() -> None:
        while time.monotonic() < end:
            body = random.choice(_bodies())
            outcome = await clients.ask(body)
            tally.add(body, outcome)
            if outcome.fate is Fate.REFUSED:
                await asyncio.sleep(outcome.retry_after_s * random.uniform(0.5, 1))

    async def watch() -> None:
        while time.monotonic() < end:
            started = time.monotonic()
            await clients.http.get("/health")
            health.append(time.monotonic() - started)
            await asyncio.sleep(0.25)

    await asyncio.gather(watch(), *[client() for _ in range(10 * _PLACES // 4)])
    say("flood", f"answers {_spread(tally.seconds)}; /health {_spread(health)}")
    return tally


async def _fault(service: Service, clients: Clients, tally: Tally, name: str, seconds: float) -> Tally:
    """Let a part die in the middle of a crowd, and wait until all are there again."""
    crowd = asyncio.create_task(_crowd(clients, tally, seconds))
    await asyncio.sleep(seconds / 4)
    await asyncio.to_thread(_FAULTS[name], service)
    await crowd
    healed = await asyncio.to_thread(wait_until, lambda: len(service.replicas()) == _REPLICAS, _RECOVERY_S)
    say(f"{name} lost", f"answers {_spread(tally.seconds)}; all replicas again {healed:.1f} s after the crowd")
    return tally


def _freeze(service: Service) -> None:
    frozen = service.processes("replica")[0]
    frozen.suspend()
    time.sleep(_FROZEN_S)
    if frozen.is_running():
        frozen.resume()


_FAULTS: dict[str, Fault] = {
    "replica": lambda service: service.kill("replica"),
    "ingress": lambda service: service.kill("ingress"),
    "proxy": lambda service: service.kill("proxy"),
    "controller": lambda service: service.kill("controller"),
    "node": Service.kill_node,
    "frozen replica": _freeze,
}


async def _settled(service: Service) -> State:
    await asyncio.to_thread(wait_until, lambda: service.state().idle, 60)
    await asyncio.sleep(3)  # what nobody holds any more is let go of
    return await asyncio.to_thread(service.state)


async def _image_seconds(clients: Clients) -> float:
    """Return how long one image takes on the idle service."""
    body = {**_bodies()[0], "num_images": 1}
    outcomes = [await clients.ask(body) for _ in range(7)]
    return median(outcome.seconds for outcome in outcomes)


def _left_over(before: State, after: State, image_before_s: float, image_after_s: float) -> list[str]:
    say("before", f"{before}, an image {image_before_s:.2f} s")
    say("after", f"{after}, an image {image_after_s:.2f} s")
    broken = []
    if not after.idle:
        broken.append(f"images are left: {after}")
    if after.object_store > before.object_store:
        broken.append(f"objects are left: {after.object_store - before.object_store:.0f} bytes")
    broken += [
        f"the {part} took {before.memory[part] / 1e6:.0f} MB and takes {after.memory[part] / 1e6:.0f} MB"
        for part in before.memory
        if after.memory[part] > _MEMORY * before.memory[part]
    ]
    return broken


def _args(checkpoint: Path) -> AppArgs:
    return AppArgs(
        num_replicas=_REPLICAS,
        num_cpus=1,
        ingress_replicas=2,
        request_timeout_s=120,
        model=ModelConfig(path=str(checkpoint), name="tiny", width=64, height=64, max_size=128),
        engine=EngineConfig(max_batch_size=_PLACES // _REPLICAS),
        limits=LimitsConfig(max_images=16, max_steps=998),
        admission=AdmissionConfig(max_waiting_images=16),
    )


def _bodies() -> list[dict[str, Any]]:
    """Return requests of several sizes, lengths and samplers; each has seeds of its own."""
    settings: list[dict[str, Any]] = [
        {"width": 64, "num_inference_steps": 8, "scheduler": "euler"},
        {"width": 128, "num_inference_steps": 30, "scheduler": "euler_a"},
        {"width": 64, "num_inference_steps": 60, "scheduler": "dpmpp_2m", "guidance_scale": 0},
        {"width": 96, "num_inference_steps": 20, "scheduler": "unipc", "preview_every": 1},
    ]
    return [
        {"prompt": "a red apple", "height": 64, "output_format": "png", "seed": 100 * i, "num_images": 1 + i, **given}
        for i, given in enumerate(settings)
    ]


def _spread(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return "none"
    cuts = quantiles(seconds, n=100)
    return f"p50 {median(seconds):.2f} s, p99 {cuts[98]:.2f} s"


def say(name: str, text: str) -> None:
    print(f"{name:<28} {text}", flush=True)


if __name__ == "__main__":
    main()
