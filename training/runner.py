"""Shared by all stages: clock, learning rate, averaged weights, gradients over several devices, files."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from training.config import Config, StageConfig, load_config, stage_arguments

# Weights are saved in pieces small enough for any store.
_PIECE_BYTES = 14 * 2**20


@dataclass
class Clock:
    """The time limit of a stage, independent of the machine's speed."""

    minutes: float
    started: float = field(default_factory=time.monotonic)

    def progress(self) -> float:
        """Return the share of the time that has passed; above 1 after the end."""
        return self.seconds() / (60 * self.minutes)

    def seconds(self) -> float:
        """Return how long the stage has been running."""
        return time.monotonic() - self.started


def learning_rate(peak: float, step: int, progress: float, warmup: int, decay_from: float) -> float:
    """Return the rate: rising over `warmup` steps, constant, then from `decay_from` of the time linearly to 2 %."""
    up = min(1.0, (step + 1) / warmup)
    down = (
        1.0 if progress < decay_from or decay_from >= 1 else max(0.02, 1 - (progress - decay_from) / (1 - decay_from))
    )
    return peak * up * down


class Average:
    """The exponential moving average of a module's weights, which is what is saved."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._live: list[torch.Tensor] = [p for p in module.parameters() if p.requires_grad]
        self._mean = [p.detach().clone() for p in self._live]
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the current weights. The decay is faster at first."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the module's weights for the average; a second call changes them back."""
        for live, mean in zip(self._live, self._mean, strict=True):
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)


def sum_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Average the gradients over all devices in one transfer.

    A wrapper around the module would interfere with the compiler.
    """
    if accelerator.num_processes == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = accelerator.reduce(torch.cat([g.flatten() for g in grads]), reduction="mean")
    offset = 0
    for grad in grads:
        grad.copy_(flat[offset : offset + grad.numel()].view_as(grad))
        offset += grad.numel()


class _KeepLayout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return grad.contiguous(memory_format=torch.channels_last)


def keep_channels_last(module: nn.Module) -> None:
    """Put `module` in channels-last layout, its gradients too.

    Group norms return gradients in the other layout, and every convolution would convert them in a separate kernel, a
    seventh of the step. With this hook the compiler fuses the conversion into the previous kernel.
    """
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda _module, _args, output: _KeepLayout.apply(output))  # type: ignore[no-untyped-call]  # as above


@dataclass(frozen=True)
class Stage:
    """The context of a training stage: its settings, clock and devices, and the folder of weights `out`."""

    config: Config
    out: Path
    clock: Clock
    accelerator: Accelerator

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    def load(self, module: nn.Module, name: str) -> None:
        """Load the weights of an earlier stage. Raises FileNotFoundError if there are none."""
        if not load_weights(module, self.out, name):
            raise FileNotFoundError(f"{self.out}: no weights of {name}; train it first")

    def resume(self, module: nn.Module, name: str) -> None:
        """Load this stage's own weights if there are any, and print that."""
        resumed = load_weights(module, self.out, name)
        millions = sum(p.numel() for p in module.parameters()) / 1e6
        self.accelerator.print(f"{name}: {millions:.3f} M parameters, {'resumed' if resumed else 'new'}")


def start(description: str) -> Stage:
    """Read the command line and return the stage. Every process gets its own seed."""
    args = stage_arguments(description).parse_args()
    config = load_config(args.config, args.changes)
    clock = Clock(config.minutes)
    accelerator = Accelerator(mixed_precision="no")
    set_seed(config.seed, device_specific=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return Stage(config, args.out, clock, accelerator)


def precision(device: torch.device) -> torch.autocast:
    """Return bfloat16 autocast on a GPU, and none on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


Loss = Callable[[int], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""Takes a step's number; returns the loss of a fresh batch and figures to log."""


class Loop:
    """One stage's training loop. `checkpoint` is called with the averaged weights in `module`."""

    def __init__(
        self, stage: Stage, name: str, settings: StageConfig, module: nn.Module, checkpoint: Callable[[int], None]
    ) -> None:
        self.config, self.clock, self.accelerator = stage.config, stage.clock, stage.accelerator
        self.name, self.settings, self.module, self.checkpoint = name, settings, module, checkpoint
        self.average = Average(module, settings.ema)
        self._progress = 0.0

    def run(self, loss: Loss) -> int:
        """Train until the time is over and save a last checkpoint; return the number of steps."""
        device, settings = self.accelerator.device, self.settings
        params = [p for p in self.module.parameters() if p.requires_grad]
        fused = device.type == "cuda"
        optimizer = torch.optim.AdamW(
            params, lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=fused
        )
        bar = tqdm(desc=self.name, disable=not self.accelerator.is_main_process, mininterval=5, unit="step")
        step, next_checkpoint, over = 0, self.config.checkpoint_minutes, False
        while not over:
            # All devices must stop at the same step: they use the first one's clock, read every few steps.
            progress = self._shared_progress(step)
            rate = learning_rate(settings.lr, step, progress, settings.warmup, settings.decay_from)
            for group in optimizer.param_groups:
                group["lr"] = rate
            value, figures = loss(step)
            value.backward()
            sum_gradients(params, self.accelerator)
            norm = nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.average.update(step)
            step += 1
            bar.update()
            if step % self.config.log_every == 0:
                self._log(bar, step, rate, {"loss": value, **figures, "norm": norm})
            over = progress >= 1
            if over or progress * self.clock.minutes >= next_checkpoint:
                next_checkpoint += self.config.checkpoint_minutes
                self._save(step)
        bar.close()
        return step

    def _shared_progress(self, step: int) -> float:
        if step % 20 == 0 or self.accelerator.num_processes == 1:
            now = torch.tensor(
                [self.clock.progress() if self.accelerator.is_main_process else 0.0], device=self.accelerator.device
            )
            self._progress = (
                float(self.accelerator.reduce(now, reduction="sum"))
                if self.accelerator.num_processes > 1
                else float(now)
            )
        return self._progress

    def _save(self, step: int) -> None:
        self.average.swap()
        if self.accelerator.is_main_process:
            self.checkpoint(step)
        self.average.swap()
        self.accelerator.wait_for_everyone()

    def _log(self, bar: "tqdm[None]", step: int, rate: float, figures: dict[str, torch.Tensor]) -> None:
        if self.accelerator.is_main_process:
            shown = {"step": step, "lr": round(rate, 6), "s": round(self.clock.seconds(), 1)}
            shown.update({key: round(value.detach().item(), 5) for key, value in figures.items()})
            bar.write(f"{self.name} {json.dumps(shown)}")


def save_weights(module: nn.Module, folder: Path, name: str) -> None:
    """Write a module's weights in float16 as `{name}-{piece}.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*.safetensors"):
        old.unlink()
    pieces: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for key, value in module.state_dict().items():
        value = value.detach().to("cpu", torch.float16 if value.is_floating_point() else value.dtype).contiguous()
        if size + value.nbytes > _PIECE_BYTES:
            pieces.append({})
            size = 0
        pieces[-1][key] = value
        size += value.nbytes
    for number, piece in enumerate(pieces):
        save_file(piece, folder / f"{name}-{number}.safetensors")


def load_weights(module: nn.Module, folder: Path, name: str) -> bool:
    """Load what `save_weights` wrote, in the module's dtype; return whether there was anything."""
    files = sorted(folder.glob(f"{name}-*.safetensors"))
    if files:
        module.load_state_dict({key: value for file in files for key, value in load_file(file).items()})
    return bool(files)


def save_grid(rows: list[torch.Tensor], path: Path) -> None:
    """Write pictures (batch, 3, height, width), -1 to 1, as one PNG, one row for each tensor."""
    lines = [torch.cat(list(row.float().cpu()), dim=2) for row in rows]
    pixels = torch.cat(lines, dim=1).clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path)
