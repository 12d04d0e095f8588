"""The state of a trajectory between two UNet calls, small enough to be kept and sent: what goes on from it has the bits
of what never stopped.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from serve_app.replica.device import to_device

_FIXED = ("_internal_dict",)
"""A scheduler's config, which is no state."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A tensor on the CPU, and whether it belongs on the device."""

    value: torch.Tensor
    on_device: bool


@dataclass(frozen=True, slots=True)
class KeptStep:
    """A trajectory after `call` UNet calls.

    `latents` and `clean` are float32 (1, latent channels, height / 8, width / 8), 256 KiB each at 1024x1024; `solver` is what its scheduler remembers, by attribute; `noise` is the state of the generator of step noise.
    All tensors are on the CPU.
    """

    call: int
    latents: torch.Tensor
    clean: torch.Tensor
    noise: torch.Tensor
    solver: Mapping[str, Any]


def keep(
    call: int,
    latents: torch.Tensor,
    clean: torch.Tensor,
    generator: torch.Generator,
    scheduler: Any,
    unused: Mapping[str, Any],
) -> KeptStep:
    """Return a trajectory's state. `unused` is `state_of` its scheduler before the first step."""
    changed = {
        name: _held(value)
        for name, value in vars(scheduler).items()
        if name not in _FIXED and not (name in unused and value is unused[name])
    }
    return KeptStep(call, latents.cpu(), clean.cpu(), generator.get_state(), changed)


def state_of(scheduler: Any) -> Mapping[str, Any]:
    """Return a scheduler's attributes, to tell later which have changed. Lists change in place, and never count."""
    return {name: value for name, value in vars(scheduler).items() if not isinstance(value, list | deque | dict)}


def restore(solver: Mapping[str, Any], scheduler: Any, device: torch.device) -> None:
    """Make a scheduler of the same settings remember what another did."""
    for name, value in solver.items():
        setattr(scheduler, name, _released(value, device))


def _held(value: Any) -> Any:
    match value:
        case torch.Tensor():
            return _Held(value.cpu().clone(), value.device.type != "cpu")
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
