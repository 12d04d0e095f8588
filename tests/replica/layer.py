"""A model of one layer, which is compiled in a quarter of the time that the smallest VAE takes.

`main`, in two new processes: compile it with the cache in a folder, and print the number of compilations and a digest
of the output.
"""

import hashlib
import os
import sys
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from serve_app.replica.compilation import Compiled
from serve_app.replica.kept_files import use_compile_cache
from serve_app.replica.kept_models import KeptModels

CHEAPLY: dict[str, object] = {"cpp.simdlen": 1, "cpp.vec_isa_ok": False, "compile_threads": 1}
"""Plain code is compiled in half the time, and here, not in helpers that import torch first.

Nor are vector instructions tried out, which each process does by three compilations and three imports of torch.
"""
LATENTS = torch.linspace(-2, 2, 256).view(1, 4, 8, 8)


class Layer(nn.Module):
    config: ClassVar[dict[str, object]] = {}

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(4, 8, 3, padding=1).requires_grad_(False)


def run(layer: Layer, latents: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = layer.conv(latents)
    return output


def compiled(layer: Layer | None = None, kept: KeptModels | None = None) -> Compiled:
    return Compiled(run, layer or Layer(), kept=kept)


def compilations() -> int:
    """Return how many graphs the compiler's back end has received."""
    return int(counters["aot_autograd"]["total"])


def fail_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise an error instead of running eagerly when no compiled model fits."""

    def refuse(*_: object) -> None:
        raise AssertionError("nothing compiled fits")

    call = Compiled.__call__

    def strict(self: Compiled, *inputs: torch.Tensor) -> torch.Tensor:
        with monkeypatch.context() as during_the_call:
            during_the_call.setattr(self, "_function", refuse)
            return call(self, *inputs)

    set_stance = torch.compiler.set_stance
    monkeypatch.setattr(torch.compiler, "set_stance", lambda _: set_stance("fail_on_recompile"))
    monkeypatch.setattr(Compiled, "__call__", strict)


@torch.inference_mode()
def answer() -> tuple[int, str]:
    """Compile the layer and return the number of compilations so far, and a digest of its output."""
    forward = compiled()
    forward.warm_up(LATENTS)
    return compilations(), hashlib.sha256(forward(LATENTS).numpy().tobytes()).hexdigest()


def main() -> None:
    torch.set_num_threads(1)
    use_compile_cache(sys.argv[1])
    with inductor.patch(CHEAPLY):
        from serve_app.replica import compiler_choices  # noqa: F401 - once for both, as all imports: they take longest

        other = os.fork()
        print(*answer(), flush=True)
        if other:
            os.waitpid(other, 0)
