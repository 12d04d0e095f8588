"""URLs of stored images, and the route that serves them."""

import re
from typing import Any, get_args

from fastapi import APIRouter, Request, Response

from serve_app.errors import InvalidRequest
from serve_app.ingress.files import NAME, Files
from serve_app.ingress.problems import Dialect
from serve_app.recipe import OutputFormat
from serve_app.schemas import Grid, Picture
from serve_app.side_work import brief_side_work

_TIMEOUT_S = 10.0
"""For one file; a network's file system may hang."""


_URL = re.compile(rf"(?:https?://\S{{1,2000}}/files/)?({NAME.pattern})", re.ASCII)


def stored_name(text: str) -> str | None:
    """Return the name of a stored file that a text is, or that the URL of such a file ends with; None: it is neither.

    Of a URL only the name counts: it follows from the content, and nobody else's file has it.
    """
    found = _URL.fullmatch(text)
    return found[1] if found else None


class Urls:
    """Stores the pictures of one answer. `warnings` name those that could not be stored."""

    def __init__(self, files: Files, base: str) -> None:
        self.warnings: list[str] = []
        self._files = files
        self._base = base.rstrip("/")

    async def of(self, picture: Picture | Grid) -> str | None:
        """Store a picture and return its URL; None where that fails, and the picture itself must be sent."""
        what = f"image {picture.index}" if isinstance(picture, Picture) else "the grid"
        async with brief_side_work(f"{what} could not be stored: it is sent without a URL", self.warnings, _TIMEOUT_S):
            return f"{self._base}/files/{await self._files.keep(picture)}"
        return None


def urls_of(files: Files | None, request: Request) -> Urls:
    """Return what stores the pictures of a request. Raises InvalidRequest if there are no files.

    URLs start with `files.base_url`, or else with the address the request was sent to.
    """
    if files is None:
        message = "response_format: url needs the service's option files.path; use b64_json"
        raise InvalidRequest(message, "response_format")
    return Urls(files, files.base_url or str(request.base_url))


def router(files: Files, dialect: Dialect) -> APIRouter:
    """Return the route that serves the files."""
    routes = APIRouter()
    found: dict[int | str, dict[str, Any]] = {
        200: {
            "content": {
                f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in get_args(OutputFormat)
            }
        }
    }

    @routes.get("/files/{name}", response_class=Response, responses={**found, **dialect.responses(404)})
    async def file(name: str) -> Response:
        """Return a stored image, by the URL from an answer."""
        content = await files.read(name)
        return Response(
            content, media_type=f"image/{name.rpartition('.')[2]}", headers={"X-Content-Type-Options": "nosniff"}
        )

    return routes
