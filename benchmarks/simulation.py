"""A discrete-event simulation of the service: GPUs, ingress replicas and clients.

What decides is the service's own code: its admission, fair order, placement and batcher. What takes time is a number
that was measured.
"""

import random
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import simpy

from benchmarks.fleet import Answer, Closed, Fleet, Kind, Open, Outcome, Times
from serve_app.errors import TooManyWaiting
from serve_app.fanout.admission import Admission
from serve_app.fanout.order import Ticket
from serve_app.fanout.placement import Placement, share_of
from serve_app.fanout.sight import PoolStatus
from serve_app.messages import ReplicaStatus
from serve_app.replica.batching import Batcher
from serve_app.schemas import ModelInfo

_POLL_S = 1.0
"""As `pool.POLL_INTERVAL_S`, which cannot be had without Ray."""
_STATUS = ReplicaStatus(
    id="",
    model=ModelInfo(name="simulated", revision=None, hash="0"),
    scheduler="euler",
    schedulers=("euler",),
    has_previews=False,
    capacity=0,
    active=0,
    waiting=0,
    finished=0,
)

Process = Generator[simpy.Event, Any, None]


def simulate(
    times: Times, fleet: Fleet, load: Closed | Open, seconds: float, warm_up: float = 0.0, seed: int = 1
) -> Outcome:
    """Simulate so many seconds after a warm-up."""
    service = _Service(times, fleet, warm_up, warm_up + seconds, random.Random(seed))  # noqa: S311, no secret
    if isinstance(load, Closed):
        for client in range(load.clients):
            service.start(_ask_again_and_again(service, load.kind, client))
    else:
        service.start(_arrive(service, load))
    return service.run()


def _ask_again_and_again(service: "_Service", kind: Kind, client: int) -> Process:
    while True:
        try:
            yield from service.request(kind, client)
        except TooManyWaiting as refused:
            yield service.env.timeout(refused.retry_after_s or 1)


def _arrive(service: "_Service", load: Open) -> Process:
    shares = [kind.share for kind in load.mix]

    def request(client: int) -> Process:
        [kind] = service.chance.choices(load.mix, shares)
        try:
            yield from service.request(kind, client)
        except TooManyWaiting:
            return

    for client in count():
        yield service.env.timeout(service.chance.expovariate(load.requests_per_second))
        service.start(request(client))


class _Meter:
    """How long something was busy between two moments."""

    def __init__(self, since: float, until: float) -> None:
        self._since, self._until = since, until
        self.busy = 0.0

    def add(self, begin: float, end: float) -> None:
        self.busy += max(0.0, min(end, self._until) - max(begin, self._since))

    @property
    def use(self) -> float:
        return self.busy / (self._until - self._since)


@dataclass(frozen=True, eq=False)
class _Image:
    """An image on a GPU: its kind, whose call it is, and what hears of its end."""

    kind: Kind
    caller: int
    finished: simpy.Event


class _Gpu:
    """A replica: the real batcher, carried out in simulated time as `Engine` does."""

    def __init__(self, env: simpy.Environment, times: Times, max_batch_size: int, meter: _Meter) -> None:
        self._env = env
        self._times = times
        self._batcher = Batcher[_Image](max_batch_size, images_per_call=1)
        self._steps_left: dict[_Image, int] = {}
        self._submitted = env.event()
        self.meter = meter
        self.calls: Counter[int] = Counter()
        """How many images it holds of each ingress."""

    def submit(self, image: _Image) -> None:
        self.calls[image.caller] += 1
        self._batcher.submit(image, group=image.kind.cost)
        if not self._submitted.triggered:
            self._submitted.succeed()

    def work(self) -> Process:
        while True:
            if self._batcher.idle:
                self._submitted = self._env.event()
                yield self._submitted
            while job := self._batcher.admit():
                self._steps_left[job.payload] = job.payload.kind.steps
                yield self._busy(self._times.prompt)
            for jobs in self._batcher.next_calls():
                for job in jobs:
                    image = job.payload
                    yield self._busy(image.kind.cost * self._times.step)
                    self._steps_left[image] -= 1
                    if not self._steps_left[image]:
                        yield self._busy(image.kind.cost * self._times.vae)
                        self._batcher.mark_denoised(job)
                        self._env.process(self._write(image))
                        del self._steps_left[image]

    def _write(self, image: _Image) -> Process:
        yield self._env.timeout(self._times.file)
        self.calls[image.caller] -= 1
        image.finished.succeed()

    def _busy(self, seconds: float) -> simpy.Event:
        self.meter.add(self._env.now, self._env.now + seconds)
        return self._env.timeout(seconds)


class _Ingress:
    """An ingress replica: the real admission and placement, with one processor."""

    def __init__(
        self, env: simpy.Environment, number: int, times: Times, fleet: Fleet, gpus: list[_Gpu], meter: _Meter
    ) -> None:
        self._env = env
        self._number = number
        self._times = times
        self._fleet = fleet
        self._gpus = gpus
        self._processor = simpy.Resource(env)
        self._waiting: dict[Ticket, _Image] = {}
        share = -(-fleet.max_waiting_images // fleet.ingresses)
        self._admission = Admission(max(share, fleet.max_images), self._capacity, clock=lambda: env.now)
        self._placement = Placement(fleet.ingresses)
        self._pool = PoolStatus()
        self.meter = meter
        self.finished = 0
        """Images so far."""
        self.deciding_s = 0.0

    def generate(self, kind: Kind, client: int) -> Process:
        """Generate a request's images. Raises TooManyWaiting."""

        def look_for_places() -> None:
            """Each generation does, whenever the queue has moved."""
            self._admission.positions()

        with self._deciding():
            self._admission.admit(kind.images, self._capacity(), 0)
            tickets = [Ticket(client, object(), index, work=kind.steps) for index in range(kind.images)]
            self._waiting.update((ticket, _Image(kind, self._number, self._env.event())) for ticket in tickets)
            self._admission.join(tickets, look_for_places)
        images = [self._env.process(self._image(ticket, self._waiting[ticket].finished)) for ticket in tickets]
        self._grant()
        yield self._env.all_of(images)

    def poll(self) -> Process:
        """See what the other ingress replicas call, each second, at another moment than they."""
        self._look()
        if self._fleet.ingresses == 1:
            return
        yield self._env.timeout(_POLL_S * self._number / self._fleet.ingresses)
        while True:
            self._look()
            self._grant()
            yield self._env.timeout(_POLL_S)

    def _image(self, ticket: Ticket, finished: simpy.Event) -> Process:
        yield finished
        with self._processor.request() as turn:
            yield turn
            self.meter.add(self._env.now, self._env.now + self._times.ingress)
            yield self._env.timeout(self._times.ingress)
        self.finished += 1
        with self._deciding():
            self._admission.end_turn(ticket)
        self._grant()
        with self._deciding():
            self._admission.leave(ticket, succeeded=True)

    def _grant(self) -> None:
        """As `Dispatcher` does, which waits in asyncio."""
        with self._deciding():
            for ticket in list(self._admission.in_order()):
                replicas, out = self._pool.replicas, self._admission.out
                if not self._placement.has_room(replicas, out):
                    return
                replica = self._placement.choose(ticket, replicas, out, frozenset())
                if replica is not None:
                    self._admission.go(ticket, replica)
                    self._gpus[int(replica)].submit(self._waiting.pop(ticket))

    def _look(self) -> None:
        each, own = replace(_STATUS, capacity=self._fleet.max_batch_size), self._number
        self._pool = PoolStatus(
            replicas=tuple(
                replace(each, id=str(place), others=gpu.calls.total() - gpu.calls[own])
                for place, gpu in enumerate(self._gpus)
            )
        )

    def _capacity(self) -> int:
        return share_of(self._pool.capacity, self._pool.others, self._fleet.ingresses)

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        began = time.thread_time()
        try:
            yield
        finally:
            self.deciding_s += time.thread_time() - began


class _Service:
    def __init__(self, times: Times, fleet: Fleet, since: float, until: float, chance: random.Random) -> None:
        self.env = simpy.Environment()
        self.chance = chance
        self._times = times
        self._since, self._until = since, until
        self._answers: list[Answer] = []
        self._refused = 0
        self._gpus = [_Gpu(self.env, times, fleet.max_batch_size, _Meter(since, until)) for _ in range(fleet.gpus)]
        self._ingresses = [
            _Ingress(self.env, number, times, fleet, self._gpus, _Meter(since, until))
            for number in range(fleet.ingresses)
        ]
        for part in (*(ingress.poll() for ingress in self._ingresses), *(gpu.work() for gpu in self._gpus)):
            self.start(part)

    def start(self, process: Process) -> None:
        self.env.process(process)

    def request(self, kind: Kind, client: int) -> Process:
        """Send a request to any ingress, as Serve's proxy does. Raises TooManyWaiting."""
        sent = self.env.now
        yield self.env.timeout(self._times.around / 2)
        try:
            yield from self.chance.choice(self._ingresses).generate(kind, client)
        except TooManyWaiting:
            self._refused += sent >= self._since
            raise
        yield self.env.timeout(self._times.around / 2)
        if self.env.now >= self._since:
            self._answers.append(Answer(self.env.now, self.env.now - sent, kind.images))

    def run(self) -> Outcome:
        if self._since:
            self.env.run(until=self._since)
        before = self._images()
        self.env.run(until=self._until)
        return Outcome(
            answers=tuple(self._answers),
            refused=self._refused,
            images_per_second=(self._images() - before) / (self._until - self._since),
            gpu_use=_mean(gpu.meter.use for gpu in self._gpus),
            ingress_use=_mean(ingress.meter.use for ingress in self._ingresses),
            deciding_s=sum(ingress.deciding_s for ingress in self._ingresses) / max(1, self._images()),
        )

    def _images(self) -> int:
        return sum(ingress.finished for ingress in self._ingresses)


def _mean(values: Iterator[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
