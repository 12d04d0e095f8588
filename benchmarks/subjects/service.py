"""The service, over HTTP: its measures, and their goals."""

from benchmarks.conditions import Conditions
from benchmarks.measures import LOAD_S, Goal, Measure, Samples, Subject, Trial, rate, rounds
from benchmarks.processes import PARTS, cpu_times
from benchmarks.service import Service, open_service


def _start(service: Service, conditions: Conditions) -> Samples:
    return {"service.start": [service.started_s]}


def _requests(service: Service, conditions: Conditions) -> Samples:
    """Generate an image on every replica, alternating between all the variants that are compared."""
    work, number = conditions.workload, len(conditions.devices)
    taken: dict[str, list[float]] = {measure.name: [] for measure in _REQUESTS}
    for _ in rounds(4 * work.seconds):
        taken["service.one"].append(service.generate(1).total)
        together, png = service.generate(number), service.generate(number, output_format="png")
        taken["service.all"].append(together.total)
        taken["service.all.png"].append(png.total)
        taken["service.around"].append(1000 * (together.total - together.generated))
        taken["service.encode"].append(1000 * together.encoded)
        taken["service.encode.png"].append(1000 * png.encoded)
        plain = service.stream(number)
        taken["service.unpreviewed"].append(plain.total)
        streamed = service.stream(number, preview_every=work.preview_every)
        taken["service.streamed"].append(streamed.total)
        if streamed.first_preview is not None:
            taken["service.first_preview"].append(streamed.first_preview)
        taken["service.skew"].append(1000 * (max(plain.images) - min(plain.images)))
    return taken


_REQUESTS = (
    Measure("service.one", "s", "1 image"),
    Measure("service.all", "s", "an image on every GPU, one answer"),
    Measure("service.all.png", "s", "the same as PNG"),
    Measure("service.around", "ms", "of an answer: all except generating its last image"),
    Measure("service.encode", "ms", "of an answer: writing a JPEG"),
    Measure("service.encode.png", "ms", "of an answer: writing a PNG"),
    Measure("service.unpreviewed", "s", "the same streamed, no previews"),
    Measure("service.streamed", "s", "the same streamed, previews every 5 steps"),
    Measure("service.first_preview", "s", "request to the first preview", Goal(0.15, 0.10)),
    Measure("service.skew", "ms", "from the first to the last image of a request"),
)


def _load(name: str) -> Trial:
    """Send requests from many clients, and measure which processes use the CPU.

    Clients take turns, so their answers come together: of a short load there are too few moments for a line.
    """
    busy = {part: Measure(f"{name}.{part}", "cores", f"CPU time under that load: {part}") for part in PARTS}

    def run(service: Service, conditions: Conditions) -> Samples:
        work, devices = conditions.workload, len(conditions.devices)
        clients, each = work.clients_per_device * devices, max(work.images_per_client, devices)
        before = cpu_times(service.pid)
        finished = service.load(clients, each, 8 * work.seconds)
        cores = cpu_times(service.pid).cores_since(before)
        return {
            name: rate(finished, warm_up=clients * each),
            **{measure.name: [cores[part]] for part, measure in busy.items()},
        }

    return Trial(
        (Measure(name, "images/s", "4 clients a GPU, 4 images each or one a GPU, again"), *busy.values()),
        run,
        seconds=150,
    )


def _service(name: str, devices: int, trials: tuple[Trial, ...]) -> Subject:
    return Subject(name, open_service, devices, seconds=LOAD_S, trials=trials)


SERVICE_1 = _service("service1", 1, (_load("service1.load"),))
SERVICE_2 = _service("service2", 2, (_load("service2.load"),))
SERVICE = _service(
    "service",
    0,
    (
        Trial(
            (
                Measure(
                    "service.start", "s", "start command to /health, all replicas, kernels in the cache", Goal(60, 30)
                ),
            ),
            _start,
            seconds=1,
        ),
        Trial(_REQUESTS, _requests, seconds=75),
        _load("service.load"),
    ),
)
