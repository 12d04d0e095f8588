"""Scaled 8-bit floats: the weights in a file must be multiplied by the scales in it, as ComfyUI writes them."""

import json

import torch

from serve_app.replica.sources import Part

_SCALES = (".scale_weight", ".weight_scale")
# Input scales matter only to 8-bit matrix products; the marker adds nothing to the scales.
_IGNORED = (".scale_input", ".input_scale", "scaled_fp8")
_FORMAT = ".comfy_quant"
_FORMATS = ("float8_e4m3fn", "float8_e5m2")


def unscaled(part: Part, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a model's weights, multiplied by their scales if they have any. Raises CheckpointError."""
    plain = {key: tensor for key, tensor in weights.items() if not key.endswith((*_SCALES, *_IGNORED, _FORMAT))}
    for key, tensor in weights.items():
        if key.endswith(_FORMAT) and (found := _format(tensor)) not in _FORMATS:
            raise part.fault(f"holds weights quantized as {found}; {', '.join(_FORMATS)} are supported")
        if key.endswith(_SCALES):
            layer = key.rsplit(".", 1)[0]
            scaled = f"{layer}.weight" if f"{layer}.weight" in plain else layer
            if scaled not in plain:
                raise part.fault(f"holds {key}, a scale of weights that it lacks")
            plain[scaled] = _multiplied(part, scaled, plain[scaled], tensor)
    return plain


def _multiplied(part: Part, key: str, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return a weight times its scale, which is one number or one per row."""
    if not weight.is_floating_point():
        raise part.fault(f"scales {key}, which are not floats; scaled 8-bit floats are supported")
    if scale.numel() == 1:
        return weight.float() * scale.float().reshape(())
    if scale.numel() == scale.shape[0] == weight.shape[0]:
        return weight.float() * scale.float().reshape(-1, *[1] * (weight.ndim - 1))
    raise part.fault(f"scales {key} by {tuple(scale.shape)} numbers; one number, or one per row, is supported")


def _format(marker: torch.Tensor) -> str:
    try:
        return str(json.loads(bytes(marker.tolist()))["format"])
    except (ValueError, TypeError, KeyError):
        return "an unknown format"
