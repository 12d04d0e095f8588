"""Whether a seed gives the same bits in every process, as the replicas of one machine guarantee.

For each of two empty compile caches, every GPU gets a process, and there are at least two processes. All start at the
same time, generate the same slots, and hash the final float32 latents and the pixels.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from math import ceil

import torch

from benchmarks.conditions import Conditions
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import Decoder
from serve_app.replica.denoise import Denoiser
from serve_app.replica.loading import load
from serve_app.replica.previews import PreviewDecoder
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import make_forward

_PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "bfloat16": ("model.dtype=bfloat16",),
    "float16": ("model.dtype=float16",),
    "fp8": ("model.dtype=bfloat16", "engine.quantization=fp8"),
}
_CPU_PRECISIONS: Mapping[str, tuple[str, ...]] = {"float32": ()}
_CACHES = 2
_FEWEST_PROCESSES = 2
_MOST_PER_DEVICE = 6
"""A loaded and warmed-up process takes about 10 GB."""
_GUIDANCE: Mapping[str, float] = {"two rows": 5.0, "one row": 0.0}


class Differ(Exception):
    """Processes of one machine gave different bits."""


@dataclass(frozen=True, slots=True)
class _Variant:
    """One way to run the model: how it is compiled, its precision, and the arguments that select both."""

    mode: str
    precision: str
    overrides: tuple[str, ...]


def probe(conditions: Conditions) -> Iterator[str]:
    """Yield the rows of a table: each digest with the number of processes that gave it. Raises Differ."""
    variants = _variants(conditions)
    devices = range(max(1, torch.cuda.device_count()))
    places = [*devices] * ceil(_FEWEST_PROCESSES / len(devices))
    together = max(1, _MOST_PER_DEVICE * len(devices) // (_CACHES * len(places)))
    differing = []
    for start in range(0, len(variants), together):
        for variant, answers in _run(conditions, variants[start : start + together], places).items():
            for name in answers[0]:
                counts = Counter(answer[name] for answer in answers)
                if len(counts) > 1:
                    differing.append(f"{variant.mode} {variant.precision} {name}")
                seen = ", ".join(f"{digest} x{count}" for digest, count in counts.items())
                yield f"| {variant.mode} | {variant.precision} | {name} | {seen} |"
    if differing:
        raise Differ(f"processes of one machine differ: {'; '.join(differing)}")


def _variants(conditions: Conditions) -> Sequence[_Variant]:
    precisions = _CPU_PRECISIONS if conditions.cpu else _PRECISIONS
    modes = ("none",) if conditions.cpu else ("full", "regional", "none")
    return [
        _Variant(mode, precision, (f"engine.compile={mode}", *overrides))
        for mode in modes
        for precision, overrides in precisions.items()
    ]


def _run(
    conditions: Conditions, variants: Sequence[_Variant], places: Sequence[int]
) -> Mapping[_Variant, Sequence[Mapping[str, str]]]:
    """Start all processes of the variants at the same time and return each one's digests."""
    with ExitStack() as held:
        folders = [held.enter_context(tempfile.TemporaryDirectory()) for _ in range(_CACHES)]
        started: dict[_Variant, list[subprocess.Popen[str]]] = {}
        for variant in variants:
            for folder, place in product(folders, places):
                job = conditions.with_overrides(*variant.overrides, f"engine.compile_cache={folder}")
                process = _start(job, place)
                held.callback(process.kill)
                started.setdefault(variant, []).append(process)
        return {variant: [_answer(process) for process in processes] for variant, processes in started.items()}


def _start(job: Conditions, device: int) -> "subprocess.Popen[str]":
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(device)}
    command = [sys.executable, "-m", "benchmarks.probes.seeds", job.model_dump_json()]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603, our own command


def _answer(process: "subprocess.Popen[str]") -> Mapping[str, str]:
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError("a process of this probe has failed; its error is above")
    answer: Mapping[str, str] = json.loads(output.splitlines()[-1])
    return answer


@torch.inference_mode()
def digests(conditions: Conditions) -> Mapping[str, str]:
    """Return the digests of what one process generates."""
    args = conditions.args()
    checkpoint = load(args)
    mode = args.engine.compile
    reader, encoder = PromptReader(checkpoint.pipe), PromptEncoder(checkpoint.pipe, checkpoint.device, 4)
    denoiser = Denoiser(checkpoint, make_forward(checkpoint.unet, mode))
    decoder = Decoder(checkpoint, mode)
    found: dict[str, str] = {}
    for name, guidance in _GUIDANCE.items():
        slot = conditions.slot(seed=7, guidance_scale=guidance)
        embeddings = encoder.conditions(reader.read(slot.recipe))
        denoiser.warm_up([Trajectory.of(slot.recipe, slot.seed, checkpoint, embeddings)])
        trajectory = Trajectory.of(slot.recipe, slot.seed, checkpoint, embeddings)
        decoder.warm_up(trajectory.latents)
        while not trajectory.done:
            trajectory.advance(denoiser.predict([trajectory])[0])
        found[f"latents, {name}"] = digest(trajectory.latents.cpu().numpy().tobytes())
        found[f"pixels, {name}"] = digest(decoder.decode(trajectory.latents).wait().tobytes())
        if preview := _preview(checkpoint, trajectory.clean, conditions):
            found[f"preview, {name}"] = preview
    return found


def _preview(checkpoint: Checkpoint, clean: torch.Tensor, conditions: Conditions) -> str | None:
    if checkpoint.preview_vae is None:
        return None
    args = conditions.args()
    previews = PreviewDecoder(checkpoint, checkpoint.preview_vae, args.preview.max_size, args.engine.compile)
    previews.warm_up(clean)
    return digest(previews.decode(clean).wait().tobytes())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


if __name__ == "__main__":
    print(json.dumps(digests(Conditions.model_validate_json(sys.argv[1]))))
