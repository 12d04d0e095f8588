"""Makes a delta of the parts that a file holds for a layer, once their shapes are seen to fit."""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from serve_app.replica.lora.delta import Change, Delta, Hadamard, Kronecker, LowRank, Whole
from serve_app.replica.lora.keys import Part
from serve_app.replica.lora.strength import Strength

_LORA = (Part.UP, Part.DOWN, Part.MID)
_LOHA = ((Part.HADA_W1_A, Part.HADA_W1_B, Part.HADA_T1), (Part.HADA_W2_A, Part.HADA_W2_B, Part.HADA_T2))
_LOKR = ((Part.LOKR_W1_A, Part.LOKR_W1_B, None), (Part.LOKR_W2_A, Part.LOKR_W2_B, Part.LOKR_T2))


class Unfit(Exception):
    """The parts of a layer do not make a delta; the message says why."""


def build(tensors: Mapping[Part, Tensor], shape: torch.Size, strength: Strength) -> Delta:
    """Return the delta of a weight of this shape. Raises Unfit."""
    for part, tensor in tensors.items():
        if tensor.numel() != 1 if part is Part.ALPHA else not tensor.ndim or not tensor.is_floating_point():
            raise Unfit(f"has a {part} of {_by(tensor.shape) or 'one'} {str(tensor.dtype).removeprefix('torch.')}")
    parts = _Parts(tensors)
    alpha = parts.take(Part.ALPHA)
    magnitude = _magnitude(parts, shape)
    change, rank = _change(parts)
    if parts.left:
        raise Unfit(f"has parts that do not belong together: {', '.join(sorted(parts.left))}")
    if change.size != (size := (shape[0], prod(shape[1:]))):
        raise Unfit(f"changes a weight of {_by(change.size)}, and the model's has {_by(size)}")
    return Delta(change, strength.of(None if alpha is None else float(alpha), rank), magnitude)


class _Parts:
    """A layer's parts, each of which is taken once."""

    def __init__(self, tensors: Mapping[Part, Tensor]) -> None:
        self.left = dict(tensors)

    def take(self, part: Part | None) -> Tensor | None:
        return self.left.pop(part, None) if part else None

    def need(self, part: Part) -> Tensor:
        if (tensor := self.take(part)) is None:
            raise Unfit(f"lacks its part {part}")
        return tensor


def _change(parts: _Parts) -> tuple[Change, int | None]:
    """Return the change and its rank."""
    if (whole := parts.take(Part.DIFF)) is not None:
        return Whole(whole), None
    if Part.HADA_W1_A in parts.left:
        first, second = (_low_rank(parts, *names) for names in _LOHA)
        if first.size != second.size:
            raise Unfit("multiplies two changes of different sizes")
        return Hadamard(first, second), first.rank
    if parts.left.keys() & {Part.LOKR_W1, Part.LOKR_W1_A}:
        outer, inner = _factor(parts, Part.LOKR_W1, *_LOKR[0]), _factor(parts, Part.LOKR_W2, *_LOKR[1])
        return Kronecker(outer, inner), inner.rank or outer.rank
    change = _low_rank(parts, *_LORA)
    return change, change.rank


def _factor(parts: _Parts, whole: Part, up: Part, down: Part, core: Part | None) -> Whole | LowRank:
    stored = parts.take(whole)
    return _low_rank(parts, up, down, core) if stored is None else Whole(stored)


def _low_rank(parts: _Parts, up_name: Part, down_name: Part, core_name: Part | None) -> LowRank:
    up, down, core = parts.need(up_name), parts.need(down_name), parts.take(core_name)
    # LyCORIS stores the first of Tucker's factors the other way round.
    turned = core is not None and core_name != Part.MID
    if up.ndim < 2 or (turned and up.ndim > 2) or down.ndim < 2:
        raise Unfit("has parts that are no matrices")
    if core is not None and core.ndim != 4:
        raise Unfit(f"has a {core_name} of {_by(core.shape)}, which is not of a convolution")
    up, down = up.T if turned else up.flatten(1), down.flatten(1)
    ranks = (up.shape[1], down.shape[0])
    if ranks[0] != ranks[1] if core is None else core.shape[:2] != ranks:
        raise Unfit(f"has parts of different ranks: {up_name} is {_by(up.shape)}, {down_name} is {_by(down.shape)}")
    return LowRank(up, down, core)


def _magnitude(parts: _Parts, shape: torch.Size) -> Tensor | None:
    """Return DoRA's lengths as (outputs, 1, ...), or, as older versions of LyCORIS count them, (1, inputs, ...)."""
    vector, scale = parts.take(Part.MAGNITUDE), parts.take(Part.DORA_SCALE)
    ones = [1] * (len(shape) - 2)
    if vector is not None and vector.numel() == shape[0]:
        return vector.reshape(shape[0], 1, *ones)
    if scale is not None and scale.numel() == scale.shape[0] == shape[0]:
        return scale.reshape(shape[0], 1, *ones)
    if scale is not None and scale.numel() == shape[1]:
        return scale.reshape(1, shape[1], *ones)
    if vector is None and scale is None:
        return None
    raise Unfit(f"has DoRA lengths that fit neither rows nor columns of the model's weight, {_by(shape)}")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
