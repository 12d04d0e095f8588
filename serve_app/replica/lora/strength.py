"""How strongly the changes of a file count: alpha divided by rank, as trainers write it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

# Where diffusers keeps PEFT's configs of the components.
_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True, slots=True)
class Strength:
    """What is known besides a layer's tensors. An alpha stored with them counts first."""

    alpha: float | None = None
    rank: int | None = None
    by_root: bool = False

    def of(self, alpha: float | None, rank: int | None) -> float:
        """Return alpha / rank; without an alpha, or a rank to divide by, nothing scales the change."""
        if alpha is not None:
            return alpha / rank if rank else 1.0
        rank = rank or self.rank
        if self.alpha is None or not rank:
            return 1.0
        return self.alpha / (sqrt(rank) if self.by_root else rank)


@dataclass(frozen=True, slots=True)
class Strengths:
    """The strengths that PEFT's configs, which some files hold, give the layers."""

    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "Strengths":
        """Read the configs from a file's metadata. Raises ValueError."""
        flat = json.loads(metadata.get(_METADATA, "{}"))
        configs: dict[str, dict[str, Any]] = {}
        for name, value in flat.items():
            component, _, setting = name.partition(".")
            configs.setdefault(component, {})[setting] = value
        return cls(configs)

    def at(self, component: str, layer: str) -> Strength:
        config = self.configs.get(component, {})
        alpha = _of_layer(config.get("alpha_pattern"), layer, config.get("lora_alpha", config.get("alpha")))
        rank = _of_layer(config.get("rank_pattern"), layer, config.get("r"))
        return Strength(alpha, rank, bool(config.get("use_rslora")))


def _of_layer(patterns: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """Return what PEFT takes for a layer: the first pattern that matches the end of its name."""
    return next((n for pattern, n in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", layer)), default)
