"""The plan: every subject, phase by phase, and what is derived from their measures."""

from collections.abc import Sequence

from benchmarks.measures import Best, Derived, Goal, Measure, PerDevice, Ratio, Subject
from benchmarks.subjects.engine import BATCHES, ENGINE, ENGINE_512, ENGINE_FEW, ENGINE_FP8
from benchmarks.subjects.peers import FAL, RAY_SERVE, STOCK, STOCK_BF16, TUNED
from benchmarks.subjects.service import SERVICE, SERVICE_1, SERVICE_2

PHASES: tuple[tuple[Subject, ...], ...] = (
    (TUNED, ENGINE, ENGINE_FEW, ENGINE_FP8, ENGINE_512, STOCK, STOCK_BF16),
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
        tuple(f"engine.batch{n}" for n in BATCHES),
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
    Ratio(Measure("tuned/engine", "x", "one image, stock tuned / ours"), "tuned.image", "engine.image"),
    Ratio(Measure("fal/service", "x", "an image on every GPU, fal / ours"), "fal.all", "service.all"),
    Ratio(Measure("service/fal.load", "x", "images/s, ours / fal"), "service.load", "fal.load"),
    Ratio(Measure("service/ray.load", "x", "images/s, ours / Ray Serve's pattern"), "service.load", "ray.load"),
)
