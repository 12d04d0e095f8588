"""`python -m benchmarks.probe NAME [NAME ...] --checkpoint FOLDER`: answers single questions, as lines of text.

sizes: one compiled UNet per size, or one for all sizes?
places, compilers: how fast are settings, and does an image have the same bits at any place of a batch? `places` runs
eagerly, `compilers` compiled.
start: what takes time at a start?
fp8: which layers, which scales?
quality: how far is fp8 from bfloat16 with trained weights?
clipping: do LoRAs exceed the inputs for which 8-bit layers were measured?
seeds: do all processes of this machine give the same bits? Fails if two differ.
adapters: what do adapters cost?
replicas: the same over HTTP, one by one, concurrently, and with a replica killed.
sketches: what do sixteen sketches cost of which three are finished?
scorers: do the best sketches become the best pictures?
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from benchmarks.conditions import SDXL_CONFIG, TINY, TINY_OVERRIDES, Conditions
from benchmarks.probes import adapters, clipping, fp8, places, quality, replicas, scorers, seeds, sizes, sketches, start
from serve_app.models import tiny

PROBES: Mapping[str, Callable[[Conditions], Iterator[str]]] = {
    "adapters": adapters.probe,
    "sizes": sizes.probe,
    "places": places.probe,
    "compilers": places.probe_compiled,
    "start": start.probe,
    "fp8": fp8.probe,
    "quality": quality.probe,
    "clipping": clipping.probe,
    "seeds": seeds.probe,
    "replicas": replicas.probe,
    "sketches": sketches.probe,
    "scorers": scorers.probe,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Answer single questions about the UNet and the compiler.")
    parser.add_argument("probes", nargs="+", choices=sorted(PROBES), metavar="NAME", help=", ".join(PROBES))
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("none"),
        help="a diffusers folder; `quality`, `clipping` and `scorers` need none",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="arguments of the service, such as engine.compile=full",
    )
    parser.add_argument("--config", type=Path, default=SDXL_CONFIG, help="the Serve config of the service")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, with a tiny model")
    options = parser.parse_args(arguments)
    cpu = not torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        conditions = Conditions(
            checkpoint=options.checkpoint, devices=(0,), cpu=cpu, config=options.config, overrides=tuple(options.set)
        )
        if options.tiny:
            changes = {
                "checkpoint": tiny.build(Path(folder)),
                "workload": TINY,
                "cpu": True,
                "overrides": (*TINY_OVERRIDES, *options.set),
            }
            conditions = conditions.model_copy(update=changes)
        for name in options.probes:
            started = time.perf_counter()
            for line in PROBES[name](conditions):
                print(f"[{name} {time.perf_counter() - started:6.1f} s] {line}", flush=True)


if __name__ == "__main__":
    main()
