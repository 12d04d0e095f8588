"""Fetches pictures that requests give as URLs, from the places that the operator has named."""

import asyncio
import ssl
from collections.abc import Sequence

import httpx2

from serve_app.ingress.decoding import UnreadablePicture

_TIMEOUT_S = 10.0
_HEADERS = {
    "Accept": "image/*",
    # A small file may unpack to one that fills the memory.
    "Accept-Encoding": "identity",
}


class Fetcher:
    """Fetches from these origins alone. Redirects are not followed: they could lead to where only this service can go.

    Nothing that a client sent goes there besides the URL: no header and no key.
    """

    def __init__(self, origins: Sequence[str], most_bytes: int) -> None:
        self._origins = frozenset(origins)
        self._tls = ssl.create_default_context() if origins else False  # once: it takes tens of milliseconds
        self._most_bytes = most_bytes

    def may_fetch(self, text: str) -> bool:
        """Return whether a text is a URL at one of the origins."""
        if not self._origins or not text.startswith(("http://", "https://")):
            return False
        try:
            url = httpx2.URL(text)
        except httpx2.InvalidURL:
            return False
        return not url.userinfo and f"{url.scheme}://{url.netloc.decode()}" in self._origins

    async def fetch(self, url: str) -> bytes:
        """Return the file at a URL that may be fetched. Raises UnreadablePicture."""
        try:
            async with asyncio.timeout(_TIMEOUT_S), httpx2.AsyncClient(headers=_HEADERS, verify=self._tls) as http:
                return await self._read(http, url)
        except TimeoutError:
            raise UnreadablePicture(f"could not be fetched within {_TIMEOUT_S:g} s") from None
        except httpx2.HTTPError:
            raise UnreadablePicture("could not be fetched: there is no connection to that URL's host") from None

    async def _read(self, http: httpx2.AsyncClient, url: str) -> bytes:
        async with http.stream("GET", url, follow_redirects=False) as response:
            if response.status_code != httpx2.codes.OK:
                raise UnreadablePicture(f"could not be fetched: its host answered with status {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise UnreadablePicture("could not be fetched: its host sends it compressed, though asked not to")
            content = bytearray()
            async for part in response.aiter_raw():
                content += part
                if len(content) > self._most_bytes:
                    most = f"{self._most_bytes} bytes (limits.max_body_bytes)"
                    raise UnreadablePicture(f"could not be fetched: it is larger than {most}")
            return bytes(content)
