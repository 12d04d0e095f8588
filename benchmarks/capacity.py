"""`python -m benchmarks.capacity`: what so many GPUs carry, in what time and at what price, by simulation.

`--against-real` compares the simulation with the embedded model's service on this machine, `--ingress` measures what
an ingress carries when the replicas generate nothing. `--price` is that of a GPU hour.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import median

import httpx2

from benchmarks.clients import keep_asking
from benchmarks.conditions import Conditions, Workload
from benchmarks.fleet import Closed, Fleet, Kind, Open, Outcome, Times
from benchmarks.measures import rate
from benchmarks.processes import cpu_times
from benchmarks.service import Service, open_service
from benchmarks.simulation import simulate

ALONE = Times(prompt=0.005, step=0.0291, vae=0.0258, file=0.038, around=0.026)
"""SDXL at 1024x1024 with guidance on an H100, from RESULTS.md: the parts of one image.

`file` is what one image on the engine (0.651 s) takes besides its parts on the GPU.
"""
SUSTAINED = replace(ALONE, step=0.03056, ingress=0.009)
"""The same under load: the step that makes `engine.turns4` 1.558 images/s, and the ingress's 0.08 cores at 6.18.

Of these, what it takes without requests is counted apart.
"""
IDLE, POLLED = 0.016, 0.0017
"""How busy an ingress is without requests, and with the polls of each replica, from `--ingress`."""

MIX = (Kind(images=1, share=0.3), Kind(images=4, share=0.6), Kind(images=16, share=0.1))
_BUSIEST_INGRESS = 0.6
"""How busy an ingress may be at the most when their number is chosen here."""
_WARM_UP_S = 15.0
_LOCAL = Path(__file__).parent.parent / "configs" / "local.yaml"
_FILE_BYTES = 500_000
"""About a JPEG of 1024x1024."""


@dataclass(frozen=True)
class Compared:
    """A measured figure beside the simulated one."""

    name: str
    measured: float
    simulated: float

    @property
    def error(self) -> float:
        return self.simulated / self.measured - 1


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    if options.against_real:
        print(compared_table(against_real(options.seconds)))
    elif options.ingress:
        print("\n".join(ingress_lines(options.seconds)))
    else:
        print(compared_table(against_results()))
        print(f"\n{_HEAD}")
        for gpus in options.gpus:
            for load in options.load:
                print(_capacity_line(gpus, load, options), flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Simulate what so many GPUs carry.")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64], help="numbers of GPUs")
    parser.add_argument("--load", type=float, nargs="+", default=[0.7, 0.9, 1.1], help="images asked for / generable")
    parser.add_argument("--ingresses", type=int, help="ingress replicas; as many as are needed by default")
    parser.add_argument("--waiting", type=int, default=64, help="admission.max_waiting_images")
    parser.add_argument("--price", type=float, default=2.5, help="of a GPU hour")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated, or of a real load")
    parser.add_argument("--against-real", action="store_true", help="compare with a real run on the CPU")
    parser.add_argument("--ingress", action="store_true", help="measure an ingress without generating")
    return parser.parse_args(arguments)


# The table.

_HEAD = (
    f"{'GPUs':>5} {'ingresses':>9} {'asked/s':>8} {'images/s':>8} {'refused':>7} "
    f"{'p50 s':>6} {'p95 s':>6} {'p99 s':>6} "
    f"{'GPU':>6} {'ingress':>7} {'deciding':>9} {'1000 cost':>9}  limit"
)


def _capacity_line(gpus: int, load: float, options: argparse.Namespace) -> str:
    asked = load * gpus / _mean_gpu_seconds(SUSTAINED, MIX)
    fleet = Fleet(gpus, options.ingresses or _ingresses(gpus, asked), max_waiting_images=options.waiting)
    arrivals = Open(asked / _mean_images(MIX), MIX)
    outcome = simulate(SUSTAINED, fleet, arrivals, options.seconds, _WARM_UP_S)
    busy = ingress_use(outcome, fleet)
    return (
        f"{gpus:5} {fleet.ingresses:9} {asked:8.1f} {outcome.images_per_second:8.1f} {outcome.refusals:7.1%} "
        f"{outcome.percentile(50):6.2f} {outcome.percentile(95):6.2f} {outcome.percentile(99):6.2f} "
        f"{outcome.gpu_use:6.1%} {busy:7.1%} {1000 * outcome.deciding_s:6.2f} ms "
        f"{cost_per_1000(fleet, outcome, options.price):9.2f}  {'ingress' if busy > outcome.gpu_use else 'GPUs'}"
    )


def ingress_use(outcome: Outcome, fleet: Fleet) -> float:
    """Return how busy an ingress is. What its decisions and polls take is not simulated: it may come to more than 1."""
    deciding = outcome.images_per_second * outcome.deciding_s / fleet.ingresses
    return outcome.ingress_use + deciding + IDLE + POLLED * fleet.gpus


def _ingresses(gpus: int, images_per_second: float) -> int:
    """Return how many ingress replicas that takes, as far as more of them help: each polls all replicas."""
    left = _BUSIEST_INGRESS - IDLE - POLLED * gpus
    return ceil(images_per_second * SUSTAINED.ingress / (left if left > 0 else _BUSIEST_INGRESS))


def cost_per_1000(fleet: Fleet, outcome: Outcome, price: float) -> float:
    """Return what 1,000 images cost at the price of a GPU hour."""
    if not outcome.images_per_second:
        return float("inf")
    return 1000 * price * fleet.gpus / (3600 * outcome.images_per_second)


def _mean_images(mix: Sequence[Kind]) -> float:
    return sum(kind.share * kind.images for kind in mix) / sum(kind.share for kind in mix)


def _mean_gpu_seconds(times: Times, mix: Sequence[Kind]) -> float:
    """Return how long an image keeps a GPU busy, on average."""
    images = sum(kind.share * kind.images for kind in mix)
    return sum(kind.share * kind.images * times.on_gpu(kind) for kind in mix) / images


# Against what was measured.


def against_results() -> list[Compared]:
    """Compare with the figures of one and four H100 in RESULTS.md."""
    four = Kind(images=4)

    def load(times: Times, gpus: int) -> float:
        outcome = simulate(times, Fleet(gpus), Closed(4 * gpus, four), seconds=120, warm_up=20)
        return rate(outcome.finished, warm_up=0)[0]

    together = simulate(ALONE, Fleet(4), Closed(1, four), seconds=5).percentile(50)
    return [
        Compared("4 images on 4 GPUs, s", 0.686, together),
        Compared("16 clients x 4 images, 4 GPUs, images/s; parts alone", 6.18, load(ALONE, 4)),
        Compared("the same; parts under load", 6.18, load(SUSTAINED, 4)),
        Compared("4 clients x 4 images, 1 GPU, images/s; parts under load", 1.539, load(SUSTAINED, 1)),
    ]


def against_real(seconds: float) -> list[Compared]:
    """Compare with the embedded model on this machine: its parts measured two images at a time, then a load."""
    clients, kind = 8, Kind(images=2)
    with _real() as service:
        times = _measured(service)
        finished, latencies = _load(service, clients, kind, seconds)
    outcome = simulate(times, Fleet(len(service.conditions.devices)), Closed(clients, kind), seconds, _WARM_UP_S)
    measured, simulated = rate(finished, warm_up=clients * kind.images), rate(outcome.finished, warm_up=0)
    return [
        Compared("images/s", measured[0], simulated[0]),
        Compared("median of a request, s", median(latencies), outcome.percentile(50)),
    ]


@contextmanager
def _real(replicas: int = 2, import_path: str | None = None, *overrides: str) -> Iterator[Service]:
    """Run the service of `configs/local.yaml`: the embedded model on the CPU."""
    conditions = Conditions(
        checkpoint=Path("embedded"),
        devices=tuple(range(replicas)),
        cpu=True,
        config=_LOCAL,
        overrides=overrides,
        workload=Workload(prompt="a red apple", size=256, guidance=3.0),
    )
    with open_service(conditions, import_path) as service:
        yield service


def _measured(service: Service, rounds: int = 9) -> Times:
    """Return the medians of an image's parts while each replica generates one."""
    answers = [service.generate(len(service.conditions.devices)) for _ in range(rounds)]
    steps = service.conditions.workload.steps
    generated = median(answer.generated - answer.encoded for answer in answers)
    return Times(
        prompt=0.0,
        step=generated / steps,
        vae=0.0,
        file=median(answer.encoded for answer in answers),
        around=median(answer.total - answer.generated for answer in answers),
    )


def _load(service: Service, clients: int, kind: Kind, seconds: float) -> tuple[list[float], list[float]]:
    """Return when each image of a load was answered, and the seconds of each request after its client's first."""
    latencies: list[float] = []

    def ask(http: httpx2.Client) -> httpx2.Response:
        began = time.perf_counter()
        response = service.ask(http, kind.images)
        latencies.append(time.perf_counter() - began)
        return response

    answered = keep_asking(clients, seconds, 4, ask, httpx2.Response.raise_for_status, timeout_s=300)
    return [moment for moment in answered for _ in range(kind.images)], latencies[clients:]


def compared_table(rows: Sequence[Compared]) -> str:
    lines = [f"{'':58} {'measured':>9} {'simulated':>9} {'error':>7}"]
    return "\n".join(
        [*lines, *(f"{row.name:58} {row.measured:9.3f} {row.simulated:9.3f} {row.error:+7.1%}" for row in rows)]
    )


# The ingress alone.


def ingress_lines(seconds: float) -> list[str]:
    """Measure requests/s, MB/s and an ingress's processor time with replicas that generate nothing."""
    few, many = 1, 6
    with _nothing(few) as service:
        idle = _idle(service, seconds / 5)
    with _nothing(many) as service:
        poll = (_idle(service, seconds / 5) - idle) / (many - few)
        head = f"{'images':>6} {'requests/s':>10} {'MB/s':>7} {'ingress, ms an image':>20} {'proxy':>7}"
        lines = [head, *(_ingress_line(service, images, seconds / 5) for images in (1, 4, 16))]
        firsts = [service.first_event() for _ in range(20)]
    return [
        *lines,
        f"idle: {1000 * idle:.1f} ms of the ingress in a second, and {1000 * poll:.1f} more for each replica after one",
        f"first event of a stream: {1000 * median(firsts):.0f} ms",
    ]


def _nothing(replicas: int) -> AbstractContextManager[Service]:
    from benchmarks.nothing import FILE_BYTES

    os.environ[FILE_BYTES] = str(_FILE_BYTES)
    return _real(replicas, "benchmarks.nothing:build", "num_cpus=0.1")


def _idle(service: Service, seconds: float) -> float:
    """Return how many processors the ingress keeps busy without requests."""
    return _seconds_of(service, lambda: time.sleep(seconds))["ingress"] / seconds


def _ingress_line(service: Service, images: int, seconds: float) -> str:
    moments: list[float] = []
    used = _seconds_of(service, lambda: moments.extend(_load(service, 4, Kind(images), seconds)[0]))
    ingress, proxy = (1000 * used[part] / len(moments) for part in ("ingress", "proxy"))
    per_second = rate(moments, warm_up=4 * images)[0]
    megabytes = per_second * _FILE_BYTES * 4 / 3 / 1e6
    return f"{images:6} {per_second / images:10.1f} {megabytes:7.1f} {ingress:20.1f} {proxy:7.1f}"


def _seconds_of(service: Service, act: Callable[[], object]) -> dict[str, float]:
    """Return the processor time of each part of the service during an act."""
    before = cpu_times(service.pid).seconds
    act()
    after = cpu_times(service.pid).seconds
    return {part: after[part] - before[part] for part in after}


if __name__ == "__main__":
    main()
