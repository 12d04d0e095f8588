"""What the clients' programs print: a line of JSON for each call."""

import json
import sys
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image

PHOTO, MASK, CUT = (
    Path(__file__).parents[2] / "out" / "clients" / name for name in ("photo.png", "mask.png", "cut.png")
)
"""A picture; a mask of its right half in white; the picture with this half transparent."""


def report(calls: dict[str, Callable[[], str]]) -> None:
    """Make calls in order and print how each went."""
    for name, call in calls.items():
        try:
            ok, result = True, call()
        except Exception as error:
            ok, result = False, f"{type(error).__name__}: {error}"
        json.dump({"call": name, "ok": ok, "result": result}, sys.stdout)
        print(flush=True)


def seen(*pictures: str) -> str:
    """Return in words what pictures, as base64, show by their files."""
    sizes = {"x".join(map(str, Image.open(BytesIO(b64decode(picture))).size)) for picture in pictures}
    return f"{len(pictures)} of {' and '.join(sorted(sizes))}"


def expect(fact: bool, what: object) -> None:
    """Raise AssertionError if something is not so."""
    if not fact:
        raise AssertionError(what)
