"""Reads the file of a LoRA: everything in it is applied, or it is refused."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from serve_app.errors import AdapterError
from serve_app.replica.lora.building import Unfit, build
from serve_app.replica.lora.delta import Delta
from serve_app.replica.lora.keys import Part, component_of, split
from serve_app.replica.lora.names import spellings_of_text_encoder, spellings_of_unet
from serve_app.replica.lora.strength import Strengths

Shapes = Mapping[str, Mapping[str, torch.Size]]
"""The shapes of the model's weights by component ("unet", "text_encoder", "text_encoder_2") and layer."""

_Layers = Mapping[tuple[str, str], Mapping[Part, Tensor]]
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class LoraDeltas:
    """What a file changes of the model, by component and layer, each as in `Shapes`; on the CPU."""

    components: Mapping[str, Mapping[str, Delta]]

    @property
    def nbytes(self) -> int:
        return sum(delta.nbytes for layers in self.components.values() for delta in layers.values())


def read_lora(file: Path, shapes: Shapes, name: str) -> LoraDeltas:
    """Return what the file of the LoRA called `name` changes of a model whose weights have these shapes.

    Raises AdapterError unless each tensor of the file has its use.
    """
    tensors, strengths = _read(file, name)
    components: dict[str, dict[str, Delta]] = defaultdict(dict)
    for (component, layer), parts in _by_layer(tensors, shapes, name).items():
        try:
            delta = build(parts, shapes[component][layer], strengths.at(component, layer))
        except Unfit as error:
            raise AdapterError(name, f"cannot be used: what it holds for {component}.{layer} {error}") from error
        components[component][layer] = delta
    return LoraDeltas(components)


def _read(file: Path, name: str) -> tuple[Mapping[str, Tensor], Strengths]:
    try:
        content = file.read_bytes()
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        strengths = Strengths.of(metadata)
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterError(name, "cannot be read") from error
    # Copied, so that no bits depend on where in the file a tensor lay.
    return {key: tensor.clone() for key, tensor in tensors.items()}, strengths


def _by_layer(tensors: Mapping[str, Tensor], shapes: Shapes, name: str) -> _Layers:
    spelled = {
        component: (spellings_of_unet if component == "unet" else spellings_of_text_encoder)(layers)
        for component, layers in shapes.items()
    }
    layers: dict[tuple[str, str], dict[Part, Tensor]] = defaultdict(dict)
    unknown = []
    for key, tensor in tensors.items():
        found = split(key)
        component, spelling = component_of(found[0]) if found else ("", "")
        layer = spelled.get(component, {}).get(spelling)
        if not found or layer is None:
            unknown.append(key)
        elif found[1] in layers[component, layer]:
            raise AdapterError(name, f"cannot be used: it holds {component}.{layer} twice, under two names")
        else:
            layers[component, layer][found[1]] = tensor
    if unknown:
        raise AdapterError(name, f"cannot be used: the model has no place for {_some(unknown)}")
    return layers


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
    return f"{', '.join(sorted(keys)[:_MOST_NAMED])}{more}"
