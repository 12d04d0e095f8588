"""The settings of A1111 that this service can be said to have. None can be changed; requests choose a model."""

import re
from collections.abc import Mapping
from typing import Any

from serve_app.errors import InvalidRequest
from serve_app.ingress.a1111.schemas import SdModel
from serve_app.ingress.offers import Offer, Offers
from serve_app.schemas import ModelInfo

MODEL = "sd_model_checkpoint"
"""The setting that names a model."""
_HASH = re.compile(r"\s*\[[0-9a-f]*\]$")
"""Behind a name, in a title."""
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
        MODEL: title_of(model),
        "sd_checkpoint_hash": model.hash,
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
        "img2img_color_correction": False,
        "inpainting_mask_weight": 1.0,
        "eta_noise_seed_delta": 0,
    }


def cards_of(offers: Offers) -> list[SdModel]:
    """Return the models that have been loaded. Raises NotReady if none has."""
    loaded = [info for offer in offers if (info := offer.service.known_model()) is not None]
    return [card_of(info) for info in loaded or [offers.default.service.model()]]


def chosen(offers: Offers, param: str, name: str | None) -> Offer:
    """Return the model that a setting names in one of A1111's ways, the default for none. Raises InvalidRequest."""
    if not name:
        return offers.default
    found = next((offer for offer in offers if name in _names(offer)), None)
    if found is None and len(alike := [offer for offer in offers if _is_alike(offer, name)]) == 1:
        found = alike[0]
    if found is None:
        raise InvalidRequest(f'{param}: "{name}" is not served here; choose one of {offers.names}', param)
    return found


def _names(offer: Offer) -> set[str]:
    info = offer.service.known_model()  # that of another model must not be woken
    told = {info.name, info.hash, title_of(info)} if info else set()
    return {offer.model.path, *told, *([offer.named] if offer.named else [])}


def _is_alike(offer: Offer, name: str) -> bool:
    """Whether a name is the model's but for its folder, its ending, capitals, or the hash behind it.

    A1111's clients keep titles such as `styles/Sd_XL.safetensors [31e35c80fc]`, and that program looks for what is like
    them too.
    """
    return _plain(name) in map(_plain, _names(offer))


def _plain(name: str) -> str:
    stem = re.split(r"[\\/]", _HASH.sub("", name))[-1]
    return re.sub(r"\.(?:safetensors|ckpt)$", "", stem, flags=re.IGNORECASE).casefold()


def check(settings: Mapping[str, Any], offer: Offer, field: str = "") -> None:
    """Refuse settings other than those in effect with a model. Raises InvalidRequest, NotReady."""
    known = options_of(offer.service.model())
    for name, value in settings.items():
        param = f"{field}.{name}" if field else name
        if name in _OF_NO_MEANING or value == known.get(name) or (name == MODEL and value in ("", None)):
            continue
        if name == MODEL and isinstance(value, str) and (value in _names(offer) or _is_alike(offer, value)):
            continue
        if name in ("sd_vae", "forge_additional_modules") and value in _NONE_CHOSEN:
            continue
        now = f"it is {known[name]!r}" if name in known else "there is no such setting"
        advice = "; name a model in override_settings of each request" if name == MODEL else ""
        raise InvalidRequest(f"{param}: cannot be changed here; {now}{advice}", param)
