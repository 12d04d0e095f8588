"""The names that a request may use for the served models."""

import re

from serve_app.ingress.offers import Offer, Offers

_PREFIX = "openai/"
"""Gateways with several providers put this before the names of OpenAI's models."""

# Names of OpenAI's models, dated ones included, so that programs written for them need no change.
_DALL_E = re.compile(r"dall-e-.+")
_ALIASES = re.compile(rf"((chat)?gpt-image-.+|{_DALL_E.pattern})")


def offer_called(model: str, offers: Offers) -> Offer | None:
    """Return the served model of a name, the default one for names of OpenAI's models. Raises NotReady."""
    bare = model.removeprefix(_PREFIX)
    found = offers.called(model) or offers.called(bare)
    return offers.default if found is None and _ALIASES.fullmatch(bare) else found


def is_dall_e(model: str) -> bool:
    """Return whether OpenAI's model of this name answers with URLs by default."""
    return _DALL_E.fullmatch(model.removeprefix(_PREFIX)) is not None
