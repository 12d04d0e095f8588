"""Pictures that clients give: the one place where they become checked values, whatever the API."""

import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image as Pillow

from serve_app.errors import InvalidRequest, NotFound
from serve_app.ingress.decoding import UnreadablePicture, mask_of, picture_of
from serve_app.ingress.file_urls import stored_name
from serve_app.ingress.files import Files
from serve_app.ingress.threads import Threads
from serve_app.recipe import picture_hash

_THREADS = 2
"""At most so many pictures are decoded at once, each of which may take some hundred megabytes on the way."""

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

    Nothing is ever fetched. `threads` are for all work on pictures.
    """

    def __init__(self, most_pixels: int, files: Files | None) -> None:
        self._most_pixels = most_pixels
        self._files = files
        self.threads = Threads(_THREADS, "pictures")

    async def picture(self, text: str, field: str) -> Given:
        """Return the picture that a field holds. Raises InvalidRequest."""
        return await self._given(text, field, picture_of)

    async def mask(self, text: str, field: str) -> Given:
        """Return the mask that a field holds. Raises InvalidRequest."""
        return await self._given(text, field, mask_of)

    async def _given(self, text: str, field: str, decode: Decode) -> Given:
        try:
            stored = await self._stored(text)
            return await self.threads.run(self._decoded, text if stored is None else stored, decode)
        except UnreadablePicture as error:
            raise InvalidRequest(f"{field}: {error}", field) from None

    async def _stored(self, text: str) -> bytes | None:
        """Return the stored file that a text names; None where the text is the picture itself."""
        name = stored_name(text)
        if name is None:
            if _URL.match(text):
                raise UnreadablePicture("nothing is fetched from other places; send the picture itself")
            return None
        if self._files is None:
            raise UnreadablePicture("no files are stored here (files.path); send the picture itself")
        try:
            return await self._files.read(name)
        except NotFound as error:
            raise UnreadablePicture(f"{error.message}; send the picture itself") from None

    def _decoded(self, given: str | bytes, decode: Decode) -> Given:
        content = _content(given) if isinstance(given, str) else given
        return Given(decode(content, self._most_pixels), picture_hash(content))


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
