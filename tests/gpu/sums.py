"""A process that runs one compiled forward and a kernel of ours, and prints a digest of the forward's result.

It also prints the kernels that it timed.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import nn
from torch._inductor.runtime.triton_heuristics import CachingAutotuner

from serve_app.replica.compilation import Compiled
from serve_app.replica.kept_files import use_compile_cache
from serve_app.replica.kernels import half, have_kernels
from serve_app.replica.norms import ChannelsLastGroupNorm


class Skip(nn.Module):
    """The start of SDXL's up blocks: concatenates the input and the skip connection, and normalises them."""

    config: ClassVar[dict[str, object]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.norm = ChannelsLastGroupNorm(32, 1920)

    def forward(self, below: torch.Tensor, kept: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(self.norm(torch.cat([below + bias[:, :, None, None], kept], dim=1)))


def run(module: Skip, below: torch.Tensor, kept: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = module(below, kept, bias)
    return result


@contextmanager
def timed_kernels() -> Iterator[list[str]]:
    """Yield a list that receives the name of every kernel whose block size is chosen by timing."""
    names: list[str] = []
    time_all: Any = CachingAutotuner.benchmark_all_configs

    def noted(tuner: Any, *args: object, **settings: object) -> object:
        names.append(tuner.fn.__name__)
        return time_all(tuner, *args, **settings)

    with patch.object(CachingAutotuner, "benchmark_all_configs", noted):
        yield names


@torch.inference_mode()
def main(folder: str) -> None:
    use_compile_cache(folder)
    torch.manual_seed(0)
    device = torch.device("cuda", 0)
    module = Skip().to(device, torch.bfloat16)
    below, kept = (
        torch.randn(2, channels, 64, 64).to(device, torch.bfloat16, memory_format=torch.channels_last)
        for channels in (1280, 640)
    )
    bias = torch.randn(2, 1280).to(device, torch.bfloat16)
    forward = Compiled(run, module)
    with timed_kernels() as timed:
        forward.warm_up(below, kept, bias)
        output = forward(below, kept, bias).float().cpu().numpy().tobytes()
    if have_kernels(device):
        half.geglu(*(torch.randn(*shape).to(device, torch.bfloat16) for shape in ((64, 64), (256, 64), (256,))))
    print(json.dumps({"digest": hashlib.sha256(output).hexdigest(), "timed": timed}))


if __name__ == "__main__":
    main(sys.argv[1])
