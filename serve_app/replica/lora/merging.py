"""Merges adapters into weights: always from the model's own, in float32, in one order, and never back out again.

Adding and subtracting a change does not give back the bits that were there before: 4 to 8 % of the weights differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from serve_app.replica.fp8 import Fp8Linear


class Delta(Protocol):
    """What an adapter changes in one weight."""

    def add_to(self, total: torch.Tensor, pristine: torch.Tensor, scale: float) -> None:
        """Add the change, `scale` times, to `total`; both are float32 and of the weight's shape.

        `pristine` is the model's own weight, on which some kinds of change depend.
        """


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model keeps a weight: a module, and which of its rows."""

    module: str
    rows: slice


@dataclass(frozen=True, slots=True)
class Addition:
    """What one adapter adds to some rows of a module's weight."""

    rows: slice
    delta: Delta
    scale: float


Additions = Mapping[str, Sequence[Addition]]
"""By module name, in the order in which they are added."""


def places(model: nn.Module) -> Mapping[str, Place]:
    """Return where each linear layer and convolution lies, by diffusers' names.

    The engine keeps the queries, keys and values of a self-attention in one layer.
    """
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d, Fp8Linear)):
            continue
        if not name.endswith(".to_qkv"):
            found[name] = Place(name, slice(None))
            continue
        rows = len(module.weight) // 3
        for part, letter in enumerate("qkv"):
            found[name.removesuffix("qkv") + letter] = Place(name, slice(part * rows, (part + 1) * rows))
    return found


def shapes(model: nn.Module) -> Mapping[str, torch.Size]:
    """Return the shape of each weight that an adapter can change, by diffusers' names."""
    return {name: _own(model, place.module)[place.rows].shape for name, place in places(model).items()}


def changes(model: nn.Module, adapters: Sequence[tuple[Mapping[str, Delta], float]]) -> Additions:
    """Return what adapters, each with its scale, change in a model's modules."""
    where = places(model)
    found: dict[str, list[Addition]] = {}
    for deltas, scale in adapters:
        for name, delta in deltas.items():
            found.setdefault(where[name].module, []).append(Addition(where[name].rows, delta, scale))
    return found


def write(target: nn.Module, own: nn.Module, name: str, changed: Sequence[Addition]) -> None:
    """Make a module of `target` that of `own` with changes; without any, its very bits."""
    module, pristine = target.get_submodule(name), _own(own, name)
    value = _merged(pristine, changed) if changed else pristine
    if isinstance(module, Fp8Linear):
        module.take(value)
    else:
        _own(target, name).copy_(value)


@contextmanager
def merged(model: nn.Module, changed: Additions) -> Iterator[None]:
    """Change a model for a while. Afterwards it has its own bits again."""
    kept = {name: _own(model, name).clone() for name in changed}
    try:
        for name, parts in changed.items():
            _own(model, name).copy_(_merged(kept[name], parts))
        yield
    finally:
        for name, pristine in kept.items():
            _own(model, name).copy_(pristine)


def _own(model: nn.Module, name: str) -> torch.Tensor:
    module = model.get_submodule(name)
    weight = module.pristine if isinstance(module, Fp8Linear) else module.weight
    assert isinstance(weight, torch.Tensor), "linear layers and convolutions have one"
    return weight


def _merged(pristine: torch.Tensor, parts: Sequence[Addition]) -> torch.Tensor:
    total = pristine.to(torch.float32, copy=True)
    own = pristine.float()
    for part in parts:
        part.delta.add_to(total[part.rows], own[part.rows], part.scale)
    return total
