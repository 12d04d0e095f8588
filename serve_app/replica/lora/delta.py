"""What an adapter changes of one weight.

The formulas are those of PEFT and LyCORIS. All arithmetic is in float32 and in one order, so the same tensors give the
same bits. A weight counts as a matrix: its outputs are rows, all else is columns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Tensors:
    """Some tensors, as the file stores them."""

    def tensors(self) -> Iterator[Tensor]:
        for part in self._parts().values():
            if isinstance(part, Tensor):
                yield part
            elif isinstance(part, _Tensors):
                yield from part.tensors()

    def moved(self, moved: Iterator[Tensor]) -> Self:
        """Return this with other tensors, one for each of `tensors`, in their order."""
        parts = {
            name: part.moved(moved) if isinstance(part, _Tensors) else next(moved) if isinstance(part, Tensor) else part
            for name, part in self._parts().items()
        }
        return type(self)(**parts)

    def _parts(self) -> Mapping[str, Any]:
        names: Sequence[str] = type(self).__slots__  # `fields` takes ten times as long
        return {name: getattr(self, name) for name in names}


class Change(Protocol):
    """A change of a weight before its strength counts."""

    @property
    def size(self) -> tuple[int, int]:
        """Outputs, and the rest."""
        ...

    def matrix(self) -> Tensor:
        """Return the change, float32 (outputs, the rest)."""
        ...


@dataclass(frozen=True, slots=True)
class Whole(_Tensors):
    """A change that is stored as it is."""

    weight: Tensor
    rank = None

    @property
    def size(self) -> tuple[int, int]:
        return self.weight.shape[0], prod(self.weight.shape[1:])

    def matrix(self) -> Tensor:
        return self.weight.float().reshape(self.size)


@dataclass(frozen=True, slots=True)
class LowRank(_Tensors):
    """LoRA: `up` (outputs, rank) times `down` (rank, the rest).

    With a core (rank, rank, height, width), Tucker's decomposition of a convolution, `down` is (rank, inputs).
    """

    up: Tensor
    down: Tensor
    core: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1] * (1 if self.core is None else prod(self.core.shape[2:]))

    def matrix(self) -> Tensor:
        up, down = self.up.float(), self.down.float()
        if self.core is None:
            return up @ down
        return torch.einsum("nmhw,on,mi->oihw", self.core.float(), up, down).flatten(1)


@dataclass(frozen=True, slots=True)
class Hadamard(_Tensors):
    """LoHa: two low-rank changes, multiplied element by element."""

    first: LowRank
    second: LowRank

    @property
    def size(self) -> tuple[int, int]:
        return self.first.size

    def matrix(self) -> Tensor:
        return self.first.matrix() * self.second.matrix()


@dataclass(frozen=True, slots=True)
class Kronecker(_Tensors):
    """LoKr: the Kronecker product of two changes, whole or low-rank."""

    first: Whole | LowRank
    second: Whole | LowRank

    @property
    def size(self) -> tuple[int, int]:
        (rows, columns), (more_rows, more_columns) = self.first.size, self.second.size
        return rows * more_rows, columns * more_columns

    def matrix(self) -> Tensor:
        return torch.kron(self.first.matrix(), self.second.matrix())


@dataclass(frozen=True, slots=True)
class Delta(_Tensors):
    """What an adapter changes of one weight.

    `strength`: how strongly the change counts, its alpha divided by its rank.
    `magnitude` (DoRA): the lengths that the weight's rows (outputs, 1, ...) or columns (1, inputs, ...) take.
    """

    change: Change
    strength: float
    magnitude: Tensor | None = None

    def add_to(self, total: Tensor, pristine: Tensor, scale: float) -> None:
        """Add `scale` times this to `total` in place.

        Both are of the weight's shape and on the delta's device. `total` is float32; `pristine` is the model's own
        weight, which only DoRA needs. As in PEFT the scale of a DoRA counts before its lengths are set. Each of several
        adapters adds what it alone would change; in PEFT a DoRA also stretches what those before it have added.
        """
        strength = self.strength * scale
        if self.magnitude is None:
            self._add(total, strength)
            return
        pristine = pristine.float()
        change = self.change.matrix().view(pristine.shape) * strength  # not in place: it may be what is kept
        changed = pristine + change
        along = [axis for axis, size in enumerate(self.magnitude.shape) if size == 1]
        stretch = self.magnitude.float() / torch.linalg.vector_norm(changed, dim=along, keepdim=True)
        total.addcmul_(stretch - 1, pristine).addcmul_(stretch, change)

    def _add(self, total: Tensor, strength: float) -> None:
        if isinstance(self.change, LowRank) and self.change.core is None and total.ndim == 2:
            total.addmm_(self.change.up.float(), self.change.down.float(), alpha=strength)
        else:
            total.add_(self.change.matrix().view(total.shape), alpha=strength)
