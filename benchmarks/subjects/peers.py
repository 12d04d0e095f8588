"""What the service is compared with: their measures."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from benchmarks.conditions import Conditions
from benchmarks.measures import LOAD_S, Measure, Samples, Subject, Trial, rate, rounds
from benchmarks.peers.fal_distributed import Fal, open_fal

_COMPILED_S = 500.0

# Imported where a subject is opened, as the engine is.
if TYPE_CHECKING:
    from benchmarks.peers.ray_serve import RayServe
    from benchmarks.peers.stock import Stock


def _open_float16(conditions: Conditions) -> AbstractContextManager[Stock]:
    from benchmarks.peers.stock import open_float16

    return open_float16(conditions)


def _open_bfloat16(conditions: Conditions) -> AbstractContextManager[Stock]:
    from benchmarks.peers.stock import open_bfloat16

    return open_bfloat16(conditions)


def _open_tuned(conditions: Conditions) -> AbstractContextManager[Stock]:
    from benchmarks.peers.stock import open_tuned

    return open_tuned(conditions)


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


STOCK = Subject("stock", _open_float16, devices=1, seconds=LOAD_S, trials=_stock("stock"))
STOCK_BF16 = Subject("stock_bf16", _open_bfloat16, devices=1, seconds=LOAD_S, trials=_stock("stock_bf16"))


TUNED = Subject("tuned", _open_tuned, devices=1, seconds=_COMPILED_S, trials=_stock("tuned")[:1])
"""One size and one picture a call: others would be compiled anew."""


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
    seconds=LOAD_S,
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
    seconds=LOAD_S,
    trials=(
        Trial(
            (Measure("ray.start", "s", "serve.run()"), Measure("ray.all", "s", "a request for every GPU, PNG")),
            _ray_requests,
            seconds=20,
        ),
        Trial((Measure("ray.load", "images/s", "4 requests a GPU at once, again and again"),), _ray_load, seconds=60),
    ),
)
