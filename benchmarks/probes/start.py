"""What takes time at a start. Run it twice with the same `engine.compile_cache`: the second run is the warm start."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch._dynamo.utils import compile_times, counters

from benchmarks.conditions import Conditions
from benchmarks.engine import open_engine
from benchmarks.measures import timed
from benchmarks.probes.unet import inputs, unet_call
from serve_app.config import AppArgs
from serve_app.replica.checkpoint import load_checkpoint
from serve_app.replica.decode import Decoder
from serve_app.replica.device import prepare_device
from serve_app.replica.hashing import checkpoint_hash
from serve_app.replica.kept_files import use_compile_cache
from serve_app.replica.sources import find_sources
from serve_app.replica.unet import make_forward

_MODULES = ("torch", "ray.serve", "diffusers", "serve_app.replica.engine")
_LONGEST = 14


def probe(conditions: Conditions) -> Iterator[str]:
    args = conditions.args()
    use_compile_cache(args.engine.compile_cache)
    for module in _MODULES:
        yield f"import {module} (a fresh process): {_import_seconds(module):.2f} s"
    yield from _parts(args)
    yield from _compiler()
    torch._dynamo.reset()
    started = time.perf_counter()
    with open_engine(conditions) as bench:
        bench.prepare(args.engine.images_per_call, conditions.slot())
        yield f"everything again, by the engine, kernels now in the cache: {time.perf_counter() - started:.2f} s"


def _parts(args: AppArgs) -> Iterator[str]:
    device = prepare_device(args.num_gpus, args.num_cpus)
    yield f"CUDA context: {timed(lambda: torch.zeros(1, device=device)):.2f} s"
    sources = find_sources(args.model)
    yield f"hash of the weights: {timed(lambda: checkpoint_hash(sources, {})):.2f} s"
    started = time.perf_counter()
    checkpoint = load_checkpoint(args.model, device)
    yield f"load_checkpoint, hash included: {time.perf_counter() - started:.2f} s"
    height, width, mode = args.model.height, args.model.width, args.engine.compile
    with torch.inference_mode():
        two, four = (inputs(checkpoint, rows, height, width) for rows in (2, 4))
        call = unet_call(checkpoint)
        yield f"first eager call (loads kernels): {_synchronized(lambda: call(*two)):.2f} s"
        yield f"second eager call: {_synchronized(lambda: call(*two)):.2f} s"
        forward = make_forward(checkpoint.unet, mode)
        yield f"UNet warm-up, {mode}, capture included: {_synchronized(lambda: forward.warm_up(*two)):.2f} s"
        yield f"UNet warm-up of another number of rows: {_synchronized(lambda: forward.warm_up(*four)):.2f} s"
        decoder = Decoder(checkpoint, mode)
        latents = two[0][:1].float().contiguous()
        yield f"VAE warm-up: {_synchronized(lambda: decoder.warm_up(latents)):.2f} s"


def _compiler() -> Iterator[str]:
    """Yield the compiler's own statistics: the phases that took longest, and its cache hits."""
    names, seconds = compile_times(repr="csv", aggregate=True)
    phases = sorted(((float(str(spent)), name) for name, spent in zip(names, seconds, strict=True)), reverse=True)
    for spent, name in phases[:_LONGEST]:
        yield f"  {name}: {spent:.2f} s"
    for group in ("aot_autograd", "inductor"):
        hits = {name: count for name, count in counters[group].items() if "cache" in name}
        yield f"  {group}: {hits}"


def _import_seconds(module: str) -> float:
    return timed(lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True, capture_output=True))  # noqa: S603, our own command


def _synchronized(act: Callable[[], object]) -> float:
    def wait() -> None:
        act()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return timed(wait)
