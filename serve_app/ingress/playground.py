"""Serves the page at `/` and its static files from `serve_app/playground/`."""

import re
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
    # Browsers revalidate (and get a 304), so that they never mix two versions.
    "Cache-Control": "no-cache",
}
_FOR_EVER = "public, max-age=31536000, immutable"
_VERSIONED = re.compile("([0-9a-f]{16})/(.+)")


class _Files(StaticFiles):
    """The page's files, each also below the version of all of them: from there browsers need not ask for it again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        version, name = found.groups() if (found := _VERSIONED.fullmatch(path)) else ("", path)
        response = await super().get_response(name, scope)
        # During a rollout the page may come from another ingress replica, which has other files.
        if version and version == _version():
            response.headers["Cache-Control"] = _FOR_EVER
        return response

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        # Hash the content: Starlette's tag uses time and size, and in a reproducible build all files have one time.
        tag = sha256(Path(full_path).read_bytes()).hexdigest()
        response = FileResponse(full_path, status_code, {**_HEADERS, "ETag": f'"{tag}"'}, stat_result=stat_result)
        return self._unless_known(response, scope)

    def page(self, scope: Scope) -> Response:
        """Return the page, whose addresses of files name their version."""
        version = _version()
        text = (_FOLDER / "index.html").read_text().replace('="playground/', f'="playground/{version}/')
        return self._unless_known(HTMLResponse(text, headers={**_HEADERS, "ETag": f'"{version}"'}), scope)

    def _unless_known(self, response: Response, scope: Scope) -> Response:
        known = self.is_not_modified(response.headers, Headers(scope=scope))
        return NotModifiedResponse(response.headers) if known else response


def _version() -> str:
    """Return a hash of all files: they import each other by their names, so a change of one is a change of all."""
    files = sorted(path for path in _FOLDER.iterdir() if path.is_file())
    return sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()[:16]


def install(api: FastAPI) -> None:
    """Serve the page at `/` and its files below `/playground`."""
    files = _Files(directory=_FOLDER)
    api.mount("/playground", files)

    @api.get("/", response_class=HTMLResponse)
    async def playground(request: Request) -> Response:
        """The playground: a page to try out the service."""
        return files.page(request.scope)
