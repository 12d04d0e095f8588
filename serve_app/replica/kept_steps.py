"""The state of a trajectory between two UNet calls, small enough to be kept and sent: what goes on from it has the bits
of what never stopped.
"""

import pickle
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from serve_app.replica.device import mark, to_device, to_host

_FIXED = ("_internal_dict",)
"""A scheduler's config, which is no state."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A tensor on the CPU, and whether it belongs on the device."""

    value: torch.Tensor
    on_device: bool


@dataclass(frozen=True, slots=True)
class KeptStep:
    """A trajectory after `call` UNet calls. All tensors are on the CPU.

    `latents` and `clean` are float32 (1, latent channels, height / 8, width / 8), 256 KiB each at 1024x1024; `noise` is
    the state of the generator of step noise, `solver` is what the scheduler remembers, by attribute.
    """

    call: int
    latents: torch.Tensor
    clean: torch.Tensor
    noise: torch.Tensor
    solver: Mapping[str, Any]

    @classmethod
    def read(cls, state: bytes) -> Self:
        """Return what `PendingStep.wait` wrote, on a replica of the same application."""
        kept: Self = pickle.loads(state)  # noqa: S301 - as Ray reads all messages between its actors
        return kept


class PendingStep:
    """A step being copied from the device. `wait` waits for it, so that the denoising loop need not."""

    def __init__(self, kept: KeptStep, copied: Callable[[], None]) -> None:
        self._kept = kept
        self._copied = copied

    def wait(self) -> bytes:
        self._copied()
        return pickle.dumps(self._kept)


def keep(
    call: int,
    latents: torch.Tensor,
    clean: torch.Tensor,
    generator: torch.Generator,
    scheduler: Any,
    unused: Mapping[str, Any],
) -> PendingStep:
    """Return a trajectory's state. `unused` is `state_of` its scheduler before the first step."""
    changed = {
        name: _held(value)
        for name, value in vars(scheduler).items()
        if name not in _FIXED and not (name in unused and value is unused[name])
    }
    kept = KeptStep(call, to_host(latents), to_host(clean), generator.get_state(), changed)
    return PendingStep(kept, mark(latents.device))


def state_of(scheduler: Any) -> Mapping[str, Any]:
    """Return a scheduler's attributes, to tell later which have changed. Lists change in place, and never count."""
    return {name: value for name, value in vars(scheduler).items() if not isinstance(value, list | deque | dict)}


def restore(solver: Mapping[str, Any], scheduler: Any, device: torch.device) -> list[torch.Tensor]:
    """Make a scheduler of the same settings remember what another did; return its tensors on the device."""
    released = {name: _released(value, device) for name, value in solver.items()}
    for name, value in released.items():
        setattr(scheduler, name, value)
    return [tensor for tensor in _tensors(released) if tensor.device == device]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    match value:
        case torch.Tensor():
            yield value
        case dict():
            yield from _tensors(list(value.values()))
        case list() | deque():
            for one in value:
                yield from _tensors(one)


def _held(value: Any) -> Any:
    match value:
        case torch.Tensor():
            return _Held(to_host(value), value.device.type != "cpu")
        case list() | deque():
            return type(value)(_held(one) for one in value)
        case dict():
            return {key: _held(one) for key, one in value.items()}
        case _:
            return value


def _released(value: Any, device: torch.device) -> Any:
    match value:
        case _Held():
            return to_device(value.value, device) if value.on_device else value.value
        case list() | deque():
            return type(value)(_released(one, device) for one in value)
        case dict():
            return {key: _released(one, device) for key, one in value.items()}
        case _:
            return value
