"""LoRAs in prompts, as A1111 has them: `<lora:name:0.8>`."""

import re
from typing import Any

from serve_app.errors import InvalidRequest
from serve_app.recipe import LARGEST_SCALE

_LORA = re.compile(r"<lora:([^<>:]+)(?::([^<>]*))?>", re.IGNORECASE)


def without_loras(prompt: str) -> tuple[str, list[dict[str, Any]]]:
    """Return a prompt without its LoRAs, and these; scales of one that is named twice add up.

    Raises InvalidRequest where a scale is no number, or the text encoders and the UNet were to have two.
    """
    scales: dict[str, float] = {}
    for name, told in _LORA.findall(prompt):
        scales[name] = scales.get(name, 0.0) + _scale(name, told)
    for name, scale in scales.items():
        if not -LARGEST_SCALE <= scale <= LARGEST_SCALE:
            bounds = f"from {-LARGEST_SCALE} to {LARGEST_SCALE}"
            raise InvalidRequest(f"prompt: <lora:{name}:{scale:g}> has a scale that is not {bounds}", "prompt")
    return _LORA.sub("", prompt), [{"name": name, "scale": scale} for name, scale in scales.items()]


def _scale(name: str, told: str) -> float:
    if not told:
        return 1.0
    try:
        first, *others = [float(part) for part in told.split(":")]
    except ValueError:
        raise InvalidRequest(f"prompt: <lora:{name}:{told}> has no number behind its name", "prompt") from None
    if any(other != first for other in others):
        raise InvalidRequest(f"prompt: <lora:{name}:{told}> has two scales; give one for all models", "prompt")
    return first
