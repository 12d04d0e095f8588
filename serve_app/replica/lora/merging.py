"""Merges adapters into weights: always from the model's own, in float32, in one order, and never back out again.

Adding and subtracting a change does not give back the bits that were there before: 4 to 8 % of the weights differ.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from serve_app.replica.fp8 import Fp8Layer


class Delta(Protocol):
    """What an adapter changes in one weight."""

    def add_to(self, total: torch.Tensor, pristine: torch.Tensor, scale: float) -> None:
        """Add the change, `scale` times, to `total`, which is float32 and of the weight's shape.

        `pristine` is the model's own weight, in its own type, on which some kinds of change depend.
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


_AT_ONCE = 2**26
"""Numbers that are merged together. More would take more memory than 256 MiB, and save no launches."""


class Layers:
    """The layers of a model whose weights adapters can change, found once: to look for them takes as long as to merge.

    Copies are made of many weights together, since a launch takes longer than what it does.
    """

    def __init__(self, model: nn.Module) -> None:
        kinds = (nn.Linear, nn.Conv2d, Fp8Layer)
        self._modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
        self._places = dict(self._found())

    def _found(self) -> Iterator[tuple[str, Place]]:
        """Yield where each weight lies, by diffusers' names.

        The engine keeps the queries, keys and values of a self-attention in one layer.
        """
        for name in self._modules:
            if not name.endswith(".to_qkv"):
                yield name, Place(name, slice(None))
                continue
            weight = self._modules[name].weight  # a layer in 8 bits may not have kept the one before
            assert isinstance(weight, torch.Tensor)
            rows = len(weight) // 3
            for part, letter in enumerate("qkv"):
                yield name.removesuffix("qkv") + letter, Place(name, slice(part * rows, (part + 1) * rows))

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """The shape of each weight that an adapter can change, by diffusers' names."""
        return {name: self._weight(place.module)[place.rows].shape for name, place in self._places.items()}

    def changes(self, adapters: Sequence[tuple[Mapping[str, Delta], float]]) -> Additions:
        """Return what adapters, each with its scale, change in these layers."""
        found: dict[str, list[Addition]] = {}
        for deltas, scale in adapters:
            for name, delta in deltas.items():
                place = self._places[name]
                found.setdefault(place.module, []).append(Addition(place.rows, delta, scale))
        return found

    def write(self, own: "Layers", changed: Additions, restored: Collection[str] = ()) -> None:
        """Make these layers those of `own` with changes; those that are `restored` have its very bits again."""
        self._take({name: own._weight(name) for name in restored})
        for names in own._batches(changed):
            self._take(own._merged(names, changed))

    @contextmanager
    def merged(self, changed: Additions) -> Iterator[None]:
        """Change these layers for a while. Afterwards they have their own bits again."""
        kept = _copies({name: self._weight(name) for name in changed})
        try:
            self.write(self, changed)
            yield
        finally:
            self._take(kept)

    def _weight(self, name: str) -> torch.Tensor:
        module = self._modules[name]
        weight = module.pristine if isinstance(module, Fp8Layer) else module.weight
        assert isinstance(weight, torch.Tensor), "linear layers and convolutions have one"
        return weight

    def _batches(self, names: Iterable[str]) -> Iterator[Sequence[str]]:
        """Yield the names in parts whose weights are few enough to be merged together."""
        batch: list[str] = []
        numbers = 0
        for name in names:
            batch.append(name)
            numbers += self._weight(name).numel()
            if numbers >= _AT_ONCE:
                yield batch
                batch, numbers = [], 0
        if batch:
            yield batch

    def _merged(self, names: Iterable[str], changed: Additions) -> Mapping[str, torch.Tensor]:
        pristine = {name: self._weight(name) for name in names}
        totals = _copies(pristine, torch.float32)
        for name, total in totals.items():
            for part in changed[name]:
                part.delta.add_to(total[part.rows], pristine[name][part.rows], part.scale)
        return totals

    def _take(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take weights of one type."""
        plain = {}
        for name, value in values.items():
            if isinstance(module := self._modules[name], Fp8Layer):
                module.take(value)
            else:
                plain[name] = value
        if plain:
            torch._foreach_copy_([self._weight(name) for name in plain], [*plain.values()])


def _copies(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> Mapping[str, torch.Tensor]:
    copies = {name: torch.empty_like(tensor, dtype=dtype) for name, tensor in tensors.items()}
    if copies:
        torch._foreach_copy_([*copies.values()], [*tensors.values()])
    return copies
