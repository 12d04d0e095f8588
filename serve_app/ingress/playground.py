"""Serves the page at `/` and its static files from `serve_app/playground/`."""

from hashlib import sha256
from os import PathLike, stat_result
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.datastructures import Headers
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Scope

_FOLDER = Path(__file__).parent.parent / "playground"

# Nothing inline and nothing from other sites: markup in a prompt or an error message stays text, and pictures stay on
# the service.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Browsers revalidate every file (and get a 304), so that they never mix two versions.
    "Cache-Control": "no-cache",
}


class _Files(StaticFiles):
    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        # Hash the content: Starlette's tag uses time and size, and in a reproducible build all files have one time.
        tag = sha256(Path(full_path).read_bytes()).hexdigest()
        response = FileResponse(full_path, status_code, {**_HEADERS, "ETag": f'"{tag}"'}, stat_result=stat_result)
        return (
            NotModifiedResponse(response.headers)
            if self.is_not_modified(response.headers, Headers(scope=scope))
            else response
        )


def install(api: FastAPI) -> None:
    """Serve the page at `/` and its files below `/playground`."""
    files = _Files(directory=_FOLDER)
    api.mount("/playground", files)

    @api.get("/", response_class=HTMLResponse)
    async def playground(request: Request) -> Response:
        """The playground: a page to try out the service."""
        return await files.get_response("index.html", request.scope)
