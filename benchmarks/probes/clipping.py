"""Whether LoRAs exceed what the scales of 8-bit inputs were measured for, which is without any, and what it costs.

With the embedded model and its LoRAs. Runs on the CPU too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import mean

import torch
from torch import nn

from benchmarks.conditions import Conditions
from benchmarks.probes.fp8 import checkpoint_widths
from benchmarks.probes.quality import Generated, generate, load, psnr
from serve_app.config import AdaptersConfig, ModelConfig
from serve_app.models import EMBEDDED
from serve_app.recipe import Lora
from serve_app.replica.checkpoint import Checkpoint, quiet_progress_bars
from serve_app.replica.kernels import convolutions
from serve_app.replica.lora.sets import WeightSet, WeightSets
from serve_app.replica.lora.store import make_store
from serve_app.replica.peaks import Place, peaks_of
from serve_app.replica.quantize import large_linears, to_fp8

_PROMPTS = (
    "a cat on a sky blue background",
    "a fire engine",
    "a zibo on a yellow background",
    "zibo",
    "a red apple",
    "a rocket, flat style",
)
_MIXES: Mapping[str, Mapping[str, float]] = {
    "none": {},
    "blueprint": {"blueprint": 1.0},
    "zibo": {"zibo": 1.0},
    "both": {"blueprint": 1.0, "zibo": 1.0},
    "blueprint, twice as strong": {"blueprint": 2.0},
}


@dataclass(slots=True)
class _Cut:
    """The inputs of a layer: the largest, as a share of the measured peak, and how many are above that."""

    largest: float = 0.0
    above: int = 0
    all: int = 0

    def see(self, shares: torch.Tensor) -> None:
        self.largest = max(self.largest, float(shares.amax()))
        self.above += int((shares > 1).sum())
        self.all += shares.numel()


def probe(conditions: Conditions) -> Iterator[str]:
    quiet_progress_bars()
    device = torch.device(conditions.device)
    half, eight_bits = load("bfloat16", device), load("bfloat16", device)
    width = checkpoint_widths(half)[0]
    layers: Mapping[Place, nn.Module] = {
        ("unet", name): layer for name, layer in (*large_linears(half.unet, width), *convolutions(half.unet).items())
    }
    peaks = peaks_of(half, ModelConfig(), layers)
    to_fp8(eight_bits, ModelConfig(), width, keep=True, kernels=True)
    for (name, ours), (_, theirs) in zip(_sets(half), _sets(eight_bits), strict=True):
        exact, cuts = _watched(half, ours, peaks)
        fp8 = generate(eight_bits, _PROMPTS, theirs)
        yield f"{name}: {_told(cuts)}; fp8 / bfloat16: {_distance(fp8, exact)}"


def _sets(checkpoint: Checkpoint) -> Iterator[tuple[str, WeightSet]]:
    """Yield the mixes of LoRAs, each in the only set beside the model's own."""
    store, sets = make_store(AdaptersConfig(path=EMBEDDED), checkpoint), WeightSets(checkpoint.unet, 1)
    assert store is not None
    for name, scales in _MIXES.items():
        adapters = store.read([Lora(name=lora, scale=scale) for lora, scale in scales.items()])
        with torch.inference_mode():
            found = sets.of(adapters, ())
        yield name, found


def _watched(
    checkpoint: Checkpoint, weights: WeightSet, peaks: Mapping[Place, torch.Tensor]
) -> tuple[Generated, list[_Cut]]:
    cuts, hooks = [], []
    for (_, name), peak in peaks.items():
        cut = _Cut()

        def look(_: nn.Module, inputs: tuple[torch.Tensor, ...], cut: _Cut = cut, peak: torch.Tensor = peak) -> None:
            cut.see(inputs[0].abs() / peak)

        cuts.append(cut)
        hooks.append(weights.unet.get_submodule(name).register_forward_pre_hook(look))
    try:
        return generate(checkpoint, _PROMPTS, weights), cuts
    finally:
        for hook in hooks:
            hook.remove()


def _told(cuts: list[_Cut]) -> str:
    above = sum(cut.above for cut in cuts) / sum(cut.all for cut in cuts)
    layer = max(cut.above / cut.all for cut in cuts)
    largest = max(cut.largest for cut in cuts)
    return f"largest input {largest:.2f} of the peak, cut {above:.1e} of all, {layer:.1e} in one of {len(cuts)} layers"


def _distance(ours: Generated, theirs: Generated) -> str:
    ratios = [psnr(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True)]
    return f"{mean(ratios):.1f} dB (least {min(ratios):.1f})"
