"""Pictures that clients give: the one place where they become checked values, whatever the API."""

import binascii
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from PIL import Image as Pillow

from serve_app.errors import InvalidRequest, NotFound
from serve_app.ingress.decoding import UnreadablePicture, hole_of, mask_of, picture_of, text_of
from serve_app.ingress.fetching import Fetcher
from serve_app.ingress.file_urls import stored_name
from serve_app.ingress.files import Files
from serve_app.recipe import picture_hash

_DATA = re.compile(r"data:[^,]{0,256}?(;base64)?,", re.IGNORECASE)
_HASH = re.compile(r"sha256:[0-9a-f]+")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_PLAIN = str.maketrans("-_", "+/", " \t\r\n=")
"""Base64 for URLs has other letters; padding and line breaks say nothing."""

Decode = Callable[[bytes, int], Pillow.Image]


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A checked picture in RGB, or mask in L, and the hash of its file."""

    image: Pillow.Image
    hash: str


class GivenPictures:
    """Reads and checks pictures: a file as base64 or a data URI, or the name or URL of a file stored here.

    Other URLs only where the fetcher may go. Errors name the field.
    """

    def __init__(self, most_pixels: int, files: Files | None, fetcher: Fetcher) -> None:
        self._most_pixels = most_pixels
        self._files = files
        self._fetcher = fetcher

    async def found(self, text: str, field: str) -> str | bytes:
        """Return the file that a field names, or its text: then that is the picture. Raises InvalidRequest."""
        with _named(field):
            return await self._found(text)

    def picture(self, found: str | bytes, field: str) -> Given:
        """Decode what was found as a picture; this takes time and memory. Raises InvalidRequest."""
        with _named(field):
            return self._decoded(found, picture_of)

    def mask(self, found: str | bytes, field: str) -> Given:
        """Decode what was found as a mask; this takes time and memory. Raises InvalidRequest."""
        with _named(field):
            return self._decoded(found, mask_of)

    def hole(self, found: str | bytes, field: str) -> str:
        """Return the mask of what is transparent in what was found, as base64. Raises InvalidRequest."""
        file = BytesIO()
        with _named(field):
            self._decoded(found, hole_of).image.save(file, "PNG")
        return b64encode(file.getvalue()).decode()

    def text(self, found: str | bytes, field: str) -> str:
        """Return the text that programs have put into what was found. Raises InvalidRequest."""
        with _named(field):
            return text_of(_content(found) if isinstance(found, str) else found, self._most_pixels)

    async def _found(self, text: str) -> str | bytes:
        if self._fetcher.may_fetch(text):
            return await self._fetcher.fetch(text)
        name = stored_name(text)
        if name is None:
            if _URL.match(text):
                raise UnreadablePicture("nothing is fetched from other places; send the picture itself")
            return text
        if self._files is None:
            raise UnreadablePicture("no files are stored here (files.path); send the picture itself")
        try:
            return await self._files.read(name)
        except NotFound as error:
            raise UnreadablePicture(f"{error.message}; send the picture itself") from None

    def _decoded(self, found: str | bytes, decode: Decode) -> Given:
        content = _content(found) if isinstance(found, str) else found
        return Given(decode(content, self._most_pixels), picture_hash(content))


@contextmanager
def _named(field: str) -> Iterator[None]:
    try:
        yield
    except UnreadablePicture as error:
        raise InvalidRequest(f"{field}: {error}", field) from None


def _content(text: str) -> bytes:
    """Return the bytes of a file given as base64 text or as a data URI. Raises UnreadablePicture."""
    if _HASH.fullmatch(text):
        raise UnreadablePicture("is the hash of a picture; send the picture itself")
    if match := _DATA.match(text):
        if not match[1]:
            raise UnreadablePicture("is a data URI, but not in base64")
        text = text[match.end() :]
    letters = text.translate(_PLAIN)
    try:
        return binascii.a2b_base64(letters + "=" * (-len(letters) % 4), strict_mode=True)
    except ValueError:  # also what is not ASCII
        raise UnreadablePicture("is neither base64 nor a data URI, nor the name or URL of a stored file") from None
