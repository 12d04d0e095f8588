"""The plan: every subject, its measures, and the project's goals."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from benchmarks.conditions import Conditions
from benchmarks.measures import Best, Derived, Goal, Measure, PerDevice, Ratio, Samples, Subject, Trial, rate, rounds
from benchmarks.peers.fal_distributed import Fal, open_fal
from benchmarks.processes import PARTS, cpu_times
from benchmarks.service import Service, open_service
from serve_app.messages import Slot

# Imported where a subject is opened: torch takes seconds to import, and whoever only calls a service needs none.
if TYPE_CHECKING:
    from benchmarks.engine import EngineBench
    from benchmarks.peers.ray_serve import RayServe
    from benchmarks.peers.stock import Stock

_LOAD_S = 60.0
"""Time to open a subject, with kernels in the cache."""
_FIRST_S = 60.0
"""Time of a trial that may have to compile, with kernels in the cache."""
_BATCHES = (1, 2, 4, 8)


# The engine, in-process.


def _open_engine(conditions: Conditions) -> AbstractContextManager[EngineBench]:
    from benchmarks.engine import open_engine

    return open_engine(conditions)


def _latency(prefix: str, goal: Goal | None, few: bool = False) -> Trial:
    """Generate one image after another."""

    def run(bench: EngineBench, conditions: Conditions) -> Samples:
        work = conditions.workload
        slot = _few(conditions) if few else conditions.slot()
        bench.prepare(1, slot)
        return {f"{prefix}.image": [bench.image(slot) for _ in rounds(work.seconds)]}

    return Trial((Measure(f"{prefix}.image", "s", "one image: prompt, UNet, VAE, JPEG", goal),), run, seconds=_FIRST_S)


def _batch(prefix: str, images: int, few: bool = False, small: bool = False) -> Trial:
    """Keep the engine full."""
    name = f"{prefix}.batch{images}"

    def run(bench: EngineBench, conditions: Conditions) -> Samples:
        work = conditions.workload
        size = work.small_size if small else work.size
        slot = _few(conditions) if few else conditions.slot(width=size, height=size)
        bench.prepare(images, slot)
        return {name: bench.rates(slot, work.seconds)}

    return Trial((Measure(name, "images/s", f"{images} images a UNet call, more waiting"),), run, seconds=60)


def _png(bench: EngineBench, conditions: Conditions) -> Samples:
    slot = conditions.slot(output_format="png")
    bench.prepare(1, slot)
    return {"engine.png": [bench.image(slot) for _ in rounds(conditions.workload.seconds / 2)]}


def _edit(bench: EngineBench, conditions: Conditions) -> Samples:
    """Go on from pictures, beside images from noise alone."""
    slot, steps = conditions.slot(), conditions.workload.steps
    strength = round(0.6 * steps) / steps
    bench.prepare(1, slot)
    taken: dict[str, list[float]] = {measure.name: [] for measure in _EDITS}
    for _ in rounds(2 * conditions.workload.seconds):
        image, (edit, encode) = bench.image(slot), bench.edit(slot, strength)
        taken["engine.edit"].append(edit)
        taken["engine.edit.encode"].append(1000 * encode)
        taken["engine.edit.beyond"].append(1000 * (edit - strength * image - encode))
    return taken


_EDITS = (
    Measure("engine.edit", "s", "one image-to-image of strength 0.6"),
    Measure("engine.edit.encode", "ms", "of that: the picture to latents"),
    Measure("engine.edit.beyond", "ms", "of that: all except encoding and 0.6 of an image", Goal(20, 10)),
)


def _idle(bench: EngineBench, conditions: Conditions) -> Samples:
    slot = conditions.slot()
    bench.prepare(1, slot)
    return {"engine.idle": [bench.idle(slot, 0)]}


def _turns(bench: EngineBench, conditions: Conditions) -> Samples:
    """Generate with a replica's default settings."""
    slot = conditions.slot()
    bench.prepare(4, slot, images_per_call=1)
    return {"engine.turns4": bench.rates(slot, conditions.workload.seconds)}


def _few(conditions: Conditions) -> Slot:
    return conditions.slot(num_inference_steps=conditions.workload.few_steps, guidance_scale=0.0)


ENGINE = Subject(
    "engine",
    _open_engine,
    devices=1,
    seconds=_LOAD_S,
    trials=(
        _latency("engine", Goal(0.74, 0.60)),
        Trial((Measure("engine.png", "s", "the same with a PNG"),), _png, seconds=15),
        Trial(_EDITS, _edit, seconds=40),
        Trial(
            (Measure("engine.idle", "%", "GPU idle between launches under load, by profiler", Goal(3, 1)),),
            _idle,
            seconds=40,
        ),
        Trial(
            (Measure("engine.turns4", "images/s", "4 images in turns, one a UNet call, more waiting"),),
            _turns,
            seconds=40,
        ),
        *(_batch("engine", images) for images in _BATCHES),
    ),
)
ENGINE_512 = Subject(
    "engine512",
    _open_engine,
    devices=1,
    seconds=_LOAD_S,
    trials=tuple(_batch("engine512", images, small=True) for images in _BATCHES),
    overrides=("model.width=512", "model.height=512"),
)
ENGINE_FP8 = Subject(
    "fp8",
    _open_engine,
    devices=1,
    seconds=_LOAD_S,
    trials=(_latency("fp8", None), *(_batch("fp8", images) for images in (4, 8))),
    overrides=("engine.quantization=fp8",),
)
ENGINE_FEW = Subject(
    "few",
    _open_engine,
    devices=1,
    seconds=_LOAD_S,
    trials=(_latency("few", Goal(0.18, 0.15), few=True), *(_batch("few", images, few=True) for images in (1, 4))),
)


# The service, over HTTP.


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
    return Subject(name, open_service, devices, seconds=_LOAD_S, trials=trials)


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


# Peers.


def _open_float16(conditions: Conditions) -> AbstractContextManager[Stock]:
    from benchmarks.peers.stock import open_float16

    return open_float16(conditions)


def _open_bfloat16(conditions: Conditions) -> AbstractContextManager[Stock]:
    from benchmarks.peers.stock import open_bfloat16

    return open_bfloat16(conditions)


def _stock(name: str) -> tuple[Trial, ...]:
    def image(stock: Stock, conditions: Conditions) -> Samples:
        work = conditions.workload
        return {f"{name}.image": [stock.images(1, work.size, work.steps, work.guidance) for _ in rounds(work.seconds)]}

    def few(stock: Stock, conditions: Conditions) -> Samples:
        work = conditions.workload
        return {f"{name}.few": [stock.images(1, work.size, work.few_steps, 0.0) for _ in rounds(work.seconds / 2)]}

    def batch(stock: Stock, conditions: Conditions) -> Samples:
        work = conditions.workload
        stock.images(4, work.size, 2, work.guidance)
        return {
            f"{name}.batch4": [4 / stock.images(4, work.size, work.steps, work.guidance) for _ in rounds(work.seconds)]
        }

    return (
        Trial((Measure(f"{name}.image", "s", "one image: prompt, UNet, VAE, JPEG"),), image, seconds=20),
        Trial((Measure(f"{name}.batch4", "images/s", "4 images a call"),), batch, seconds=25),
        Trial((Measure(f"{name}.few", "s", "one image, few steps, no guidance"),), few, seconds=15),
    )


STOCK = Subject("stock", _open_float16, devices=1, seconds=_LOAD_S, trials=_stock("stock"))
STOCK_BF16 = Subject("stock_bf16", _open_bfloat16, devices=1, seconds=_LOAD_S, trials=_stock("stock_bf16"))


def _fal_requests(fal: Fal, conditions: Conditions) -> Samples:
    calls, streams = [], []
    for _ in rounds(2 * conditions.workload.seconds):
        calls.append(fal.call())
        streams.append(fal.stream())
    return {
        "fal.start": [fal.started_s],
        "fal.all": calls,
        "fal.streamed": [stream.total for stream in streams],
        "fal.first_preview": [stream.first_preview for stream in streams],
    }


def _fal_load(fal: Fal, conditions: Conditions) -> Samples:
    work, devices = conditions.workload, len(conditions.devices)
    finished = fal.load(work.clients_per_device, 2 * work.seconds)
    return {"fal.load": rate(finished, warm_up=devices)}


FAL = Subject(
    "fal",
    open_fal,
    devices=0,
    seconds=_LOAD_S,
    trials=(
        Trial(
            (
                Measure("fal.start", "s", "runner.start()"),
                Measure("fal.all", "s", "an image on every GPU, one grid"),
                Measure("fal.streamed", "s", "the same streamed, previews every 5 steps"),
                Measure("fal.first_preview", "s", "request to the first preview"),
            ),
            _fal_requests,
            seconds=60,
        ),
        Trial((Measure("fal.load", "images/s", "4 calls at once, again and again"),), _fal_load, seconds=60),
    ),
)


def _open_ray_serve(conditions: Conditions) -> AbstractContextManager[RayServe]:
    from benchmarks.peers.ray_serve import open_ray_serve

    return open_ray_serve(conditions)


def _ray_requests(peer: RayServe, conditions: Conditions) -> Samples:
    together = [peer.together(len(conditions.devices)) for _ in rounds(conditions.workload.seconds)]
    return {"ray.start": [peer.started_s], "ray.all": together}


def _ray_load(peer: RayServe, conditions: Conditions) -> Samples:
    work, devices = conditions.workload, len(conditions.devices)
    finished = peer.load(work.clients_per_device * devices, 2 * work.seconds)
    return {"ray.load": rate(finished, warm_up=devices)}


RAY_SERVE = Subject(
    "ray",
    _open_ray_serve,
    devices=0,
    seconds=_LOAD_S,
    trials=(
        Trial(
            (Measure("ray.start", "s", "serve.run()"), Measure("ray.all", "s", "a request for every GPU, PNG")),
            _ray_requests,
            seconds=20,
        ),
        Trial((Measure("ray.load", "images/s", "4 requests a GPU at once, again and again"),), _ray_load, seconds=60),
    ),
)

PHASES: tuple[tuple[Subject, ...], ...] = (
    (ENGINE, ENGINE_FEW, ENGINE_FP8, ENGINE_512, STOCK, STOCK_BF16),
    (SERVICE_1, SERVICE_2),
    (SERVICE,),
    (FAL,),
    (RAY_SERVE,),
)
"""The subjects, phase by phase. Phases run one after another.

Subjects of one phase run in parallel, each on its own GPUs and cores, as many as there are GPUs for. The engine comes
before the service, so that the service starts faster with the compiled kernels.
"""

DERIVED: Sequence[Derived] = (
    Best(
        Measure("engine.best", "images/s", "best batch, 1024", Goal(1.60, 1.80)),
        tuple(f"engine.batch{n}" for n in _BATCHES),
    ),
    Best(Measure("fp8.best", "images/s", "best batch with fp8", Goal(1.80, 2.10)), ("fp8.batch4", "fp8.batch8")),
    Best(Measure("few.best", "images/s", "best batch, few steps", Goal(8, 10)), ("few.batch1", "few.batch4")),
    Ratio(
        Measure("all/engine", "x", "an image on every GPU over HTTP / one on the engine", Goal(1.08, 1.03)),
        "service.all",
        "engine.image",
    ),
    Ratio(Measure("all.png/engine", "x", "the same as PNG", Goal(1.25, 1.15)), "service.all.png", "engine.image"),
    Ratio(
        Measure("streamed/unstreamed", "x", "previews every 5 steps / one answer", Goal(1.04, 1.01)),
        "service.streamed",
        "service.all",
    ),
    PerDevice(Measure("load/gpu", "images/s", "the same load, for each GPU", Goal(1.5, 1.7)), "service.load"),
    Ratio(
        Measure("scale1to2", "x", "images/s a GPU, 2 GPUs / 1", Goal(0.97, 0.99)),
        "service2.load",
        "service1.load",
        per_device=True,
    ),
    Ratio(
        Measure("scale1toall", "x", "images/s a GPU, all GPUs / 1", Goal(0.97, 0.99)),
        "service.load",
        "service1.load",
        per_device=True,
    ),
    Ratio(Measure("stock/engine", "x", "one image, stock / ours"), "stock.image", "engine.image"),
    Ratio(Measure("fal/service", "x", "an image on every GPU, fal / ours"), "fal.all", "service.all"),
    Ratio(Measure("service/fal.load", "x", "images/s, ours / fal"), "service.load", "fal.load"),
    Ratio(Measure("service/ray.load", "x", "images/s, ours / Ray Serve's pattern"), "service.load", "ray.load"),
)
