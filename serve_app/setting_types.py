"""Types of settings, each with a message that refuses values which can never work."""

import re
from typing import Annotated, Any
from unicodedata import category

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import Url

from serve_app.models import EMBEDDED

_DEFAULT_PORTS = {"http": 80, "https": 443}
_INVISIBLE = {"Cc", "Cs", "Zl", "Zp"}
_PRECISION = 4
"""Ray counts resources to this many decimal places."""


def _text(value: str) -> str:
    if not value or value != value.strip() or any(category(character) in _INVISIBLE for character in value):
        raise ValueError("must hold text without surrounding spaces or line breaks; leave it out for the default")
    return value


def _absolute_path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"must be an absolute path: {value} would depend on each process's working folder")
    return value


def _path_or_embedded(value: str) -> str:
    return value if value == EMBEDDED else _absolute_path(value)


def _variable_name(value: str) -> str:
    if not re.fullmatch(r"[-._a-zA-Z][-._a-zA-Z0-9]*", value):
        raise ValueError("must be the name of an environment variable, such as API_KEYS; the variable holds the keys")
    return value


def _base_url(value: str) -> str:
    url = _url(value)
    if not url or url.scheme not in _DEFAULT_PORTS or {url.query, url.fragment, url.username, url.password} != {None}:
        raise ValueError("must be http:// or https:// and a host, without user, ? or #, such as https://a.example.com")
    return str(url).rstrip("/")


def _origin(value: str) -> str:
    if value in ("*", "null"):  # browsers send null as the origin of a local file
        return value
    url = _url(value)
    if not url or not url.host or "*" in url.host:
        raise ValueError(
            f"{value} is not an origin: write scheme and host, such as https://a.example.com, or * for any"
        )
    port = "" if url.port in (None, _DEFAULT_PORTS.get(url.scheme)) else f":{url.port}"
    if value != (origin := f"{url.scheme}://{url.host}{port}"):
        raise ValueError(f"{value} never matches; browsers send the origin as {origin}")
    return value


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    if "*" in value and len(value) > 1:
        raise ValueError("* stands for any origin: list nothing else beside it")
    return value


def _place(value: str) -> str:
    if value in ("*", "null") or not value.startswith(("https://", "http://")):
        raise ValueError(f"{value} is not a place: write scheme and host, such as https://images.example.com")
    return _origin(value)


def _size(value: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", value, re.ASCII):
        raise ValueError(f"{value} is not a size: write width x height in pixels, such as 1152x896")
    return value


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"must be a list, even of one, such as [{value}]")
    return value


def _import_path(value: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
        raise ValueError(
            f"{value} is not the path of a function: write module:function, such as my_package.scorers:aesthetic"
        )
    return value


def _share(value: float) -> float:
    if value != round(value, _PRECISION):
        raise ValueError(f"must have at most {_PRECISION} decimal places, such as 0.3333: Ray counts no finer")
    return value


def _url(value: str) -> Url | None:
    try:
        return Url(value)
    except ValueError:
        return None


Text = Annotated[str, AfterValidator(_text)]
AbsolutePath = Annotated[Text, AfterValidator(_absolute_path)]
PathOrEmbedded = Annotated[Text, AfterValidator(_path_or_embedded)]
VariableName = Annotated[str, AfterValidator(_variable_name)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
"""Without a trailing slash, normalised as browsers do."""
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_origin)], ...], BeforeValidator(_listed), AfterValidator(_origins)
]
Places = Annotated[tuple[Annotated[str, AfterValidator(_place)], ...], BeforeValidator(_listed)]
"""Origins that this service itself may ask."""
Sizes = Annotated[tuple[Annotated[str, AfterValidator(_size)], ...], BeforeValidator(_listed)]
ImportPath = Annotated[str, AfterValidator(_import_path)]
Share = Annotated[float, AfterValidator(_share)]
"""An amount of a Ray resource, such as GPUs."""
