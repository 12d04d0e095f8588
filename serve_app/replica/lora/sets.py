"""Weight sets: the UNet's own weights, and copies of it with adapters merged in.

A copy keeps its place in memory, so that whatever was compiled and captured for it goes on to work: other adapters are
written over it. Compiled models serve all sets.
"""

import copy
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from torch import nn

from serve_app.replica.fp8 import Fp8Layer
from serve_app.replica.lora.merging import Delta, Layers

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
COMPONENTS = ("unet", *TEXT_ENCODERS)
"""The models that adapters change, by their names in diffusers' pipeline."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """Adapters that were read, in the order in which they are merged; `key` tells them from others.

    `deltas` are those of each adapter, by component (`unet`, `text_encoder`, `text_encoder_2`) and by layer.
    """

    key: tuple[tuple[str, float], ...] = ()
    deltas: tuple[Mapping[str, Mapping[str, Delta]], ...] = ()

    def of(self, component: str) -> Sequence[tuple[Mapping[str, Delta], float]]:
        """Return the deltas of one component, each with its scale."""
        return [(deltas.get(component, {}), scale) for (_, scale), deltas in zip(self.key, self.deltas, strict=True)]


NO_ADAPTERS = Adapters()


class WeightSet:
    """A UNet whose weights adapters were merged into; without any it is the model's own."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self.adapters = NO_ADAPTERS
        self._layers = Layers(unet)
        self._written: Set[str] = frozenset()

    def take(self, own: "WeightSet", adapters: Adapters) -> None:
        """Merge other adapters into the weights of `own`. Where that fails it has none, whatever its weights are."""
        changed = own._layers.changes(adapters.of("unet"))
        restored = self._written - changed.keys()
        self.adapters, self._written = NO_ADAPTERS, self._written | changed.keys()
        self._layers.write(own._layers, changed, restored)
        self.adapters, self._written = adapters, changed.keys()


class WeightSets:
    """The sets of a replica: the model's own and `resident` others, of which idle ones take other adapters."""

    def __init__(self, unet: UNet2DConditionModel, resident: int) -> None:
        self.own = WeightSet(unet)
        self._others = [WeightSet(_copy(unet)) for _ in range(resident)]  # the least recently used first

    @property
    def all(self) -> Sequence[WeightSet]:
        return [self.own, *self._others]

    def of(self, adapters: Adapters, in_use: Collection[WeightSet]) -> WeightSet:
        """Return a set with these adapters, which may be one that is not `in_use` and had others.

        Raises RuntimeError if all are in use: the batcher admits no job for which there is none.
        """
        if not adapters.key:
            return self.own
        fitting = (one for one in self._others if one.adapters.key == adapters.key)
        idle = (one for one in self._others if one not in in_use)
        found = next(fitting, None) or next(idle, None)
        if found is None:
            raise RuntimeError(f"all {len(self._others)} weight sets are in use")
        if found.adapters.key != adapters.key:
            found.take(self.own, adapters)
        self._others.remove(found)
        self._others.append(found)
        return found


def _copy(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a UNet with weights of its own where adapters can change them; all else is shared."""
    pristine = (module.pristine for module in unet.modules() if isinstance(module, Fp8Layer))
    shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers(), *pristine)}
    own = copy.deepcopy(unet, shared)
    for module in own.modules():
        if isinstance(module, Fp8Layer):
            module.own_weight()
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)
    return own
