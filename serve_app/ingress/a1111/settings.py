"""The settings of A1111 that this service can be said to have. None can be changed."""

from collections.abc import Mapping
from typing import Any

from serve_app.errors import InvalidRequest
from serve_app.ingress.a1111.schemas import SdModel
from serve_app.schemas import ModelInfo

_MODEL = "sd_model_checkpoint"
_NONE_CHOSEN: tuple[Any, ...] = ("", "Automatic", "None", None, [])
_OF_NO_MEANING = ("CLIP_stop_at_last_layers",)
"""SDXL has its own; A1111 ignores it for these models too."""


def title_of(model: ModelInfo) -> str:
    return f"{model.name} [{model.hash}]"


def card_of(model: ModelInfo) -> SdModel:
    return SdModel(title=title_of(model), model_name=model.name, hash=model.hash, filename=model.name)


def options_of(model: ModelInfo) -> dict[str, Any]:
    """Return the settings in effect."""
    return {
        _MODEL: title_of(model),
        "sd_checkpoint_hash": model.hash,
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
        "img2img_color_correction": False,
        "inpainting_mask_weight": 1.0,
        "eta_noise_seed_delta": 0,
    }


def check(settings: Mapping[str, Any], model: ModelInfo, path: str, field: str = "") -> None:
    """Refuse settings other than those in effect; `path` is that of the served model. Raises InvalidRequest."""
    known = options_of(model)
    for name, value in settings.items():
        param = f"{field}.{name}" if field else name
        if name in _OF_NO_MEANING or value == known.get(name) or (name == _MODEL and value in ("", None)):
            continue
        if name == _MODEL and value in (model.name, model.hash, path):
            continue
        if name in ("sd_vae", "forge_additional_modules") and value in _NONE_CHOSEN:
            continue
        now = f"it is {known[name]!r}" if name in known else "there is no such setting"
        raise InvalidRequest(f"{param}: cannot be changed here; {now}", param)
