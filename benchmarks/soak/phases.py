"""The phases of a soak: crowds of clients, and what happens to the service beside them."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx2
import psutil

from benchmarks.soak import checks
from benchmarks.soak.checks import Flood, Row
from benchmarks.soak.clients import Clients, Fate, Tally
from benchmarks.soak.cluster import Part, Service, State, wait_until
from benchmarks.soak.logs import Logs
from benchmarks.soak.witness import Refusal, Stage

_CROWD = 6
_IMPATIENT = 14
_LONGEST_STAY = 1.1
"""Of the time that an answer usually takes; some come just too late."""

_AIMED, _LAST_STAGES_S = 0.5, 0.15
"""How many of those who cancel wait for an image's last steps, and the longest time from there."""

_PAUSE_S = 0.1
_WARM_UPS, _STAYS = 6, 1.015
"""At most so many rounds, until memory grows by no more than this part in one."""

_OVERLOAD = 10
_HEAL_S = 180.0
_SETTLE_S = 20.0
_FROZEN_S = 15.0
_LOOKS = 3


@dataclass(frozen=True)
class Size:
    """How much of it: numbers of requests, and seconds of a phase.

    `samples` is how often the idle service is asked for its health, and a tenth of that for an image. `judged`: whether
    times, memory and the stages met are judged; a few seconds of a busy machine say nothing about them.
    """

    warm_up_s: float
    cancels: int
    flood_s: float
    fault_s: float
    kills: tuple[Part, ...]
    freezes: bool
    samples: int
    judged: bool = True


@dataclass
class Soak:
    """A soak of a service: `rows` and `broken` fill while it runs. Clients act at random."""

    service: Service
    size: Size
    rows: list[Row] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._clients = Clients(self.service.url)
        self._tally = Tally()
        self._logs = Logs()
        self._killed: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Run all phases."""
        await self._alone()
        self._row("pictures alone", self._tally, 0)
        crowd = await self._crowd(self.size.warm_up_s)
        self._row("a first crowd", crowd, 0)
        answer_s = median(crowd.seconds)
        self._row("some leave", await self._warm_up(answer_s), 0)
        self._start = await self._usual()
        image_s = await self._image_s()
        self._judge(checks.slow_health(await self._health(lambda asked: asked < self.size.samples)))
        await self._cancel(answer_s)
        await self._settle()
        self._judge(checks.grown(self._start, await self._observe()))
        await self._flood()
        await self._settle()
        self._judge(checks.grown(self._start, await self._observe()))
        self.broken += [f"in the logs before any fault: {line}" for line in self._logs.tracebacks()[:10]]
        for part in self.size.kills:
            await self._kill(part)
            await self._settle()
        if self.size.freezes:
            await self._freeze()
            await self._settle()
        self._judge(checks.grown(self._start, await self._observe()))
        self._judge(checks.slower(image_s, await self._image_s()))
        self.broken += [f"in the logs: {line}" for line in self._logs.tracebacks(self._killed)[:10]]

    def _judge(self, broken: list[str]) -> None:
        if self.size.judged:
            self.broken += broken

    def _row(self, event: str, tally: Tally, faults: int, healed_s: float | None = None, tears: bool = False) -> None:
        self.rows.append(Row(event, tally, faults, healed_s, tears))
        self.broken += checks.delivered(self.rows[-1])
        say(event, str(tally))

    async def _alone(self) -> None:
        """Generate every picture once, by itself: what all others are compared with."""
        for body in bodies():
            for index in range(body["num_images"]):
                alone = {**body, "seed": body["seed"] + index, "num_images": 1}
                self._tally.add(alone, await self._clients.ask(alone))

    async def _crowd(self, seconds: float) -> Tally:
        """Let some clients ask without a pause."""
        end, tally = time.monotonic() + seconds, self._tally.fresh()

        async def client() -> None:
            while time.monotonic() < end:
                await self._clients.insist(random.choice(bodies()), tally)

        await asyncio.gather(*[client() for _ in range(_CROWD)])
        return tally

    async def _warm_up(self, answer_s: float) -> Tally:
        """Let clients leave until memory stays: the first few hundred requests make an ingress grow by a tenth."""
        tally, before = self._tally.fresh(), await self._observe()
        for _ in range(_WARM_UPS):
            await self._impatient(answer_s, self.size.cancels // 3, tally)
            after = await self._observe()
            if not self.size.judged or not checks.grown(before, after, _STAYS):
                break
            before = after
        return tally

    async def _impatient(self, answer_s: float, cancels: int, tally: Tally) -> None:
        """Let clients hang up or cancel at any time beside some that wait, until so many more have.

        `answer_s` is how long an answer took so far.
        """
        enough = tally.gone + cancels

        async def client(number: int) -> None:
            while tally.gone < enough:
                longest_s = _LONGEST_STAY * median(tally.seconds or [answer_s])
                body, after_s = random.choice(bodies()), random.uniform(0, longest_s)
                match number % 4:
                    case 0 if random.random() < _AIMED:
                        after_s = random.uniform(0, _LAST_STAGES_S)
                        outcome = await self._clients.cancel(body, after_s, from_last_steps=True)
                    case 0:
                        outcome = await self._clients.cancel(body, after_s)
                    case 1:
                        outcome = await self._clients.leave(body, "/generate", after_s)
                    case 2:
                        outcome = await self._clients.leave(body, "/stream", after_s)
                    case _:
                        outcome = await self._clients.ask(body)
                tally.add(body, outcome)
                await asyncio.sleep(_PAUSE_S * (outcome.fate is Fate.REFUSED))

        await asyncio.gather(*[client(number) for number in range(_IMPATIENT)])

    async def _cancel(self, answer_s: float) -> None:
        """Let clients leave at every stage of an image."""
        before, tally = await self._stages(), self._tally.fresh()
        await self._impatient(answer_s, self.size.cancels, tally)
        idle_s = await asyncio.to_thread(wait_until, lambda: self.service.idle, _SETTLE_S)
        self._row("clients cancel and hang up", tally, tally.gone, idle_s)
        stages = await self._stages() - before
        say("images cancelled while", ", ".join(f"{stage.value}: {stages[stage]}" for stage in Stage))
        self._judge(checks.stages_missed(stages))

    async def _stages(self) -> Counter[Stage]:
        """Return how many images have been cancelled so far, by where they were."""
        parts = (Part.REPLICA, Part.INGRESS)
        censuses = [census for part in parts for census in await asyncio.to_thread(self.service.censuses, part)]
        return sum((census.cancelled for census in censuses), Counter())

    async def _flood(self) -> None:
        """Ask for ten times the images that are generated at once; those refused come again when told to."""
        started, tally, args = time.monotonic(), self._tally.fresh(), self.service.args
        places = args.num_replicas * args.engine.max_batch_size
        clients = round(_OVERLOAD * places / _images_per_request())
        before = await self._refusals()

        async def client() -> None:
            while time.monotonic() < started + self.size.flood_s:
                body = random.choice(bodies())
                outcome = await self._clients.ask(body)
                tally.add(body, outcome)
                await asyncio.sleep(outcome.retry_after_s)

        watching = asyncio.create_task(self._health(lambda _: time.monotonic() < started + self.size.flood_s))
        await asyncio.gather(*[client() for _ in range(clients)])
        seconds = time.monotonic() - started
        refusals = tuple((await self._refusals() - before).elements())
        waiting = max(args.admission.max_waiting_images, args.ingress_replicas * args.limits.max_images)
        flood = Flood(tally, seconds, places + waiting, refusals, tuple(await watching))
        self._row(f"{_OVERLOAD} times more comes than fits", tally, 0)
        say("", f"answers {checks.spread(tally.seconds)}; promised {flood.promised_s:.1f} s; {flood.told_well:.0%} of")
        say("", f"{len(refusals)} refusals told when there was room; /health {checks.spread(flood.health_s)}")
        self._judge(checks.kept_promises(flood))

    async def _refusals(self) -> Counter[Refusal]:
        censuses = await asyncio.to_thread(self.service.censuses, Part.INGRESS)
        return Counter(refusal for census in censuses for refusal in census.refusals)

    async def _health(self, goes_on: Callable[[int], bool]) -> list[float]:
        """Ask for the health again and again; return how long each answer took."""
        seconds: list[float] = []
        while goes_on(len(seconds)):
            started = time.monotonic()
            response = await self._clients.http.get("/health")
            seconds.append(time.monotonic() - started)
            if response.status_code != httpx2.codes.OK:
                self.broken.append(f"/health: {response.status_code} {response.text}")
            await asyncio.sleep(0.02)
        say("/health", checks.spread(seconds))
        return seconds

    async def _kill(self, part: Part) -> None:
        """Let a process die in the middle of a crowd, and wait until all are there again."""
        before, victim = self.service.pids(), self.service.victim(part)
        if part is Part.RAYLET:
            self.service.add_node()  # its machine is replaced
        crowd = asyncio.create_task(self._crowd(self.size.fault_s))
        await asyncio.sleep(self.size.fault_s / 4)
        started = time.monotonic()
        self._killed |= await asyncio.to_thread(self.service.kill, victim)

        def healed() -> bool:
            after = self.service.pids()
            return not checks.happened(part, victim.pid, before, after) and self.service.whole

        await self._heal(part.value, healed)
        healed_s = time.monotonic() - started
        tally, after = await crowd, self.service.pids()
        self.broken += checks.happened(part, victim.pid, before, after)
        holds_connections = any(before[kind] - after[kind] for kind in (Part.INGRESS, Part.PROXY))
        self._row(f"a {part.value} is killed", tally, 1, healed_s, holds_connections)

    async def _freeze(self) -> None:
        """Stop a replica's process for a while in the middle of a crowd: it must be lost from sight."""
        crowd, wanted = asyncio.create_task(self._crowd(self.size.fault_s)), self.service.args.num_replicas
        await asyncio.sleep(self.size.fault_s / 4)
        started, victim = time.monotonic(), self.service.victim(Part.REPLICA)
        victim.suspend()
        try:
            await self._heal("frozen replica to be missed", lambda: self.service.ready() < wanted, _FROZEN_S)
            await asyncio.sleep(started + _FROZEN_S - time.monotonic())
        finally:
            _resume(victim)
        thawed = time.monotonic()
        await self._heal("frozen replica", lambda: self.service.whole)
        healed_s = time.monotonic() - thawed
        self._row(f"a replica is frozen for {_FROZEN_S:g} s", await crowd, 1, healed_s)

    async def _heal(self, what: str, healed: Callable[[], bool], seconds: float = _HEAL_S) -> None:
        try:
            await asyncio.to_thread(wait_until, healed, seconds)
        except TimeoutError as error:
            self.broken.append(f"{what}: {error}")

    async def _settle(self) -> None:
        """Wait until nothing is left of what was; what stays is broken."""
        until, state = time.monotonic() + _SETTLE_S, await self._observe()
        while left := checks.left_over(self._start, state):
            if time.monotonic() > until:
                self.broken += [f"after {self.rows[-1].event}: {line}" for line in left]
                return
            await asyncio.sleep(0.5)
            state = state.least(await self._observe())

    async def _usual(self) -> State:
        """Return what the idle service holds."""
        await asyncio.to_thread(wait_until, lambda: self.service.idle, _SETTLE_S)
        state = await self._observe()
        for _ in range(_LOOKS):
            await asyncio.sleep(0.5)
            state = state.least(await self._observe())
        return state

    async def _observe(self) -> State:
        return await asyncio.to_thread(self.service.state)

    async def _image_s(self) -> float:
        """Return how long one image takes on the idle service."""
        body = {**bodies()[0], "num_images": 1}
        outcomes = [await self._clients.ask(body) for _ in range(self.size.samples // 10)]
        image_s = float(median(outcome.seconds for outcome in outcomes))
        say("one image", f"{image_s:.3f} s")
        return image_s


def bodies() -> list[dict[str, Any]]:
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


def _images_per_request() -> float:
    numbers: list[int] = [body["num_images"] for body in bodies()]
    return sum(numbers) / len(numbers)


def _resume(process: psutil.Process) -> None:
    if process.is_running():
        process.resume()


def say(name: str, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {name:<28} {text}", flush=True)
