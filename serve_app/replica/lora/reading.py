"""Reads the file of a LoRA: everything in it is applied, or it is refused."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve_app.adapters.header import NoAdapter
from serve_app.adapters.kinds import require_lora
from serve_app.errors import AdapterError
from serve_app.replica.adapter_files import read_tensors, some
from serve_app.replica.lora.building import Unfit, build
from serve_app.replica.lora.delta import Delta
from serve_app.replica.lora.keys import Part, component_of, split
from serve_app.replica.lora.names import spellings_of_text_encoder, spellings_of_unet
from serve_app.replica.lora.strength import Strengths

Shapes = Mapping[str, Mapping[str, torch.Size]]
"""The shapes of the model's weights by component ("unet", "text_encoder", "text_encoder_2") and layer."""

_Layers = Mapping[tuple[str, str], Mapping[Part, Tensor]]
# How PEFT saves an adapter: its settings lie beside its weights.
_PEFT_FILE, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, slots=True)
class LoraDeltas:
    """What a file of this hash changes of the model, by component and layer, each as in `Shapes`; on the CPU."""

    components: Mapping[str, Mapping[str, Delta]]
    hash: str

    def tensors(self) -> Sequence[Tensor]:
        return [
            tensor for layers in self.components.values() for delta in layers.values() for tensor in delta.tensors()
        ]

    def moved(self, moved: Sequence[Tensor]) -> Mapping[str, Mapping[str, Delta]]:
        """Return the components with other tensors, one for each of `tensors`, in their order."""
        rest = iter(moved)
        return {
            component: {layer: delta.moved(rest) for layer, delta in layers.items()}
            for component, layers in self.components.items()
        }


def read_lora(file: Path, shapes: Shapes, name: str, hash: str | None = None) -> LoraDeltas:
    """Return what the file of the LoRA called `name` changes of a model whose weights have these shapes.

    Raises AdapterError unless each tensor of the file has its use, and the file has this hash, if one is given.
    """
    try:
        content = read_tensors(file, require_lora, hash)
        strengths = Strengths.of(content.metadata, _beside(file))
        return LoraDeltas(_deltas(_by_layer(content.tensors, shapes), shapes, strengths), content.hash)
    except NoAdapter as error:
        raise AdapterError(name, str(error)) from error
    except OSError as error:
        raise AdapterError(name, f"cannot be read: {error.strerror}") from error


def _beside(file: Path) -> Mapping[str, Any]:
    """Return the settings of an adapter that PEFT has saved. Raises NoAdapter."""
    path = file.with_name(_PEFT_CONFIG)
    if file.name != _PEFT_FILE or not path.exists():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise NoAdapter(f"has a broken {_PEFT_CONFIG} beside it")
    return config


def _by_layer(tensors: Mapping[str, Tensor], shapes: Shapes) -> _Layers:
    """Return the parts of each layer. Raises NoAdapter if a tensor belongs to none."""
    spelled = {
        component: (spellings_of_unet if component == "unet" else spellings_of_text_encoder)(layers)
        for component, layers in shapes.items()
    }
    layers: dict[tuple[str, str], dict[Part, Tensor]] = defaultdict(dict)
    unnamed, homeless = [], []
    for key, tensor in tensors.items():
        if not (found := split(key)):
            unnamed.append(key)
            continue
        component, spelling = component_of(found[0])
        if (layer := spelled.get(component, {}).get(spelling)) is None:
            homeless.append(key)
            continue
        parts = layers[component, layer]
        if found[1] in parts:
            raise NoAdapter(f"holds {found[1]} of {component}.{layer} twice, under two names")
        parts[found[1]] = tensor
    if unnamed:
        raise NoAdapter(f"holds what cannot be applied: {some(unnamed)}; a part of a LoRA would be another picture")
    if homeless:
        raise NoAdapter(
            f"changes layers that the served model does not have, so it was made for another: {some(homeless)}"
        )
    return layers


def _deltas(layers: _Layers, shapes: Shapes, strengths: Strengths) -> Mapping[str, Mapping[str, Delta]]:
    """Raises NoAdapter if the parts of a layer do not fit it."""
    components: dict[str, dict[str, Delta]] = defaultdict(dict)
    for (component, layer), parts in layers.items():
        try:
            delta = build(parts, shapes[component][layer], strengths.at(component, layer))
        except Unfit as error:
            raise NoAdapter(f"cannot be applied: what it holds for {component}.{layer} {error}") from error
        components[component][layer] = delta
    return components
