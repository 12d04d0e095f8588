"""By which names the served model may be asked for."""

import re
from collections.abc import Collection

_PREFIX = "openai/"
"""What gateways that know several providers put before OpenAI's models."""

# Names of OpenAI's models, dated ones among them, so that programs written for them need no change.
_DALL_E = re.compile(r"dall-e-.+")
_ALIASES = re.compile(rf"((chat)?gpt-image-.+|{_DALL_E.pattern})")


def stands_for(model: str, served: Collection[str]) -> bool:
    """Return whether a name asked for is one of the served model's own, or one of OpenAI's."""
    bare = model.removeprefix(_PREFIX)
    return model in served or bare in served or _ALIASES.fullmatch(bare) is not None


def is_dall_e(model: str) -> bool:
    """Return whether this is a model of the kind that answers with URLs unless told otherwise."""
    return _DALL_E.fullmatch(model.removeprefix(_PREFIX)) is not None
