"""URLs of stored images, and the route that serves them."""

from collections.abc import Awaitable, Callable
from typing import Any, get_args

from fastapi import APIRouter, Request, Response

from serve_app.errors import InvalidRequest
from serve_app.ingress.files import Files
from serve_app.ingress.problems import Dialect
from serve_app.recipe import OutputFormat
from serve_app.schemas import Grid, Picture

UrlOf = Callable[[Picture | Grid], Awaitable[str]]
"""Stores a picture and returns its URL."""


def url_maker(files: Files | None, request: Request) -> UrlOf:
    """Return the function that stores the pictures of a request. Raises InvalidRequest if there are no files.

    URLs start with `files.base_url`, or else with the address the request was sent to.
    """
    if files is None:
        message = "response_format: url needs the service's option files.path; use b64_json"
        raise InvalidRequest(message, "response_format")
    base = (files.base_url or str(request.base_url)).rstrip("/")

    async def url_of(picture: Picture | Grid) -> str:
        return f"{base}/files/{await files.keep(picture)}"

    return url_of


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
