"""How strongly the changes of a file count: alpha divided by rank, as trainers write it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Self

from serve_app.adapters.header import NoAdapter

# Where diffusers keeps PEFT's settings of the components, and what those say that nothing here could apply.
_METADATA = "lora_adapter_metadata"
_LARGEST = 1_000_000
_PATTERN = re.compile(r"[\w.^$|\\\[\]-]*")
"""Without repetition: a pattern from somebody's file could take for ever otherwise."""
_UNSUPPORTED = ("fan_in_fan_out", "use_qalora", "layer_replication", "alora_invocation_tokens")


@dataclass(frozen=True, slots=True)
class Strength:
    """What is known of a layer besides its tensors. An alpha stored with them counts first."""

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
    """The settings of PEFT that some files hold or have beside them, by component; "" stands for all."""

    configs: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, metadata: Mapping[str, str], beside: Mapping[str, Any]) -> Self:
        """Raises NoAdapter if the settings are broken, or ask for what is not supported."""
        configs: dict[str, dict[str, Any]] = {"": dict(beside)}
        try:
            for name, value in json.loads(metadata.get(_METADATA, "{}")).items():
                component, _, setting = name.partition(".")
                configs.setdefault(component, {})[setting] = value
        except (ValueError, AttributeError, RecursionError) as error:
            raise NoAdapter(f"has broken metadata: {_METADATA}") from error
        for config in configs.values():
            if asked := [name for name in _UNSUPPORTED if config.get(name)]:
                raise NoAdapter(f"needs PEFT's {asked[0]}, which is not supported")
        return cls(configs)

    def at(self, component: str, layer: str) -> Strength:
        """Return what is known of a layer. Raises NoAdapter."""
        config = self.configs.get(component) or self.configs[""]
        alpha = _of_layer(config.get("alpha_pattern"), layer, config.get("lora_alpha", config.get("alpha")))
        rank = _of_layer(config.get("rank_pattern"), layer, config.get("r"))
        if not (alpha is None or (isinstance(alpha, int | float) and abs(alpha) < _LARGEST)):
            raise NoAdapter(f"has broken settings of PEFT: its alpha is {str(alpha)[:20]}")
        if not (rank is None or (isinstance(rank, int) and 0 < rank < _LARGEST)):
            raise NoAdapter(f"has broken settings of PEFT: its rank is {str(rank)[:20]}")
        return Strength(alpha, rank, bool(config.get("use_rslora")))


def _of_layer(patterns: Any, layer: str, default: Any) -> Any:
    """Return what PEFT takes for a layer: the first pattern that matches the end of its name."""
    if isinstance(patterns, Mapping) and (unread := [end for end in patterns if not _PATTERN.fullmatch(end)]):
        raise NoAdapter(f"has settings of PEFT with a pattern that is not read: {unread[0][:60]}")
    try:
        return next((n for end, n in (patterns or {}).items() if re.match(rf"(.*\.)?({end})$", layer)), default)
    except (AttributeError, TypeError, re.error) as error:
        raise NoAdapter("has broken settings of PEFT: its patterns are none") from error
