"""The names that a request may use for the served model."""

import re
from collections.abc import Collection

_PREFIX = "openai/"
"""Gateways with several providers put this before the names of OpenAI's models."""

# Names of OpenAI's models, dated ones included, so that programs written for them need no change.
_DALL_E = re.compile(r"dall-e-.+")
_ALIASES = re.compile(rf"((chat)?gpt-image-.+|{_DALL_E.pattern})")


def stands_for(model: str, served: Collection[str]) -> bool:
    """Return whether a requested name is one of the served model's, or one of OpenAI's."""
    bare = model.removeprefix(_PREFIX)
    return model in served or bare in served or _ALIASES.fullmatch(bare) is not None


def is_dall_e(model: str) -> bool:
    """Return whether OpenAI's model of this name answers with URLs by default."""
    return _DALL_E.fullmatch(model.removeprefix(_PREFIX)) is not None
