"""Images as files for a while, for answers that hold a URL in place of the image."""

import asyncio
import base64
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from stat import S_ISREG
from tempfile import TemporaryFile
from typing import Any, get_args

from fastapi import APIRouter, Request, Response

from serve_app.background import background
from serve_app.config import FilesConfig
from serve_app.errors import InternalError, InvalidRequest, NotFound
from serve_app.ingress.problems import Dialect
from serve_app.recipe import OutputFormat
from serve_app.schemas import Grid, Picture

logger = logging.getLogger("ray.serve")

_NAME = re.compile(rf"[\w-]{{32}}\.({'|'.join(get_args(OutputFormat))})", re.ASCII)
_UNFINISHED = ".part"
_TIDY_INTERVAL_S = 60.0


UrlOf = Callable[[Picture | Grid], Awaitable[str]]
"""Keeps a picture and returns its URL."""


class Files:
    """A folder of images. It may be shared by several processes, which know no more of it than what lies there.

    A file goes when it is older than `ttl_s`; while all are larger than `max_bytes` together, the oldest goes.
    Files of other names are left alone. Raises ValueError where it is no folder to write to.
    """

    def __init__(self, folder: Path, config: FilesConfig) -> None:
        self._folder = folder
        self._config = config
        try:
            folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(f"files.path: {folder} cannot be made or written to: {error}") from error

    @asynccontextmanager
    async def tidied(self) -> AsyncIterator[None]:
        """Let files go when their time has come, for as long as the context is open."""

        async def keep_tidy() -> None:
            while True:
                await asyncio.to_thread(self._tidy)
                await asyncio.sleep(min(_TIDY_INTERVAL_S, self._config.ttl_s))

        async with background(keep_tidy()):
            yield

    async def url_of(self, picture: Picture | Grid, request: Request) -> str:
        """Keep a picture and return where it can be fetched. Raises InternalError where it cannot be kept.

        That is below `base_url`, or the address that the request was sent to.
        """
        try:
            name = await asyncio.to_thread(self._save, picture)
        except OSError as error:
            logger.exception("an image cannot be written to the folder of files.path, %s", self._folder)
            raise InternalError() from error
        return f"{(self._config.base_url or str(request.base_url)).rstrip('/')}/files/{name}"

    async def read(self, name: str) -> bytes:
        """Return a file that `url_of` has made. Raises NotFound."""
        if _NAME.fullmatch(name):
            with suppress(FileNotFoundError):
                return await asyncio.to_thread(self._read, self._folder / name)
        raise NotFound("there is no such file, or its time has passed")

    def _read(self, path: Path) -> bytes:
        stat = path.lstat()
        if not S_ISREG(stat.st_mode) or self._too_old(stat):
            raise FileNotFoundError
        return path.read_bytes()

    def _save(self, picture: Picture | Grid) -> str:
        path = self._folder / f"{secrets.token_urlsafe(24)}.{picture.media_type.removeprefix('image/')}"
        unfinished = path.with_name(path.name + _UNFINISHED)
        unfinished.write_bytes(base64.b64decode(picture.b64_json))
        unfinished.rename(path)
        self._tidy()
        return path.name

    def _tidy(self) -> None:
        """Remove what is too old or too much. If that fails, pictures are handed out all the same."""
        try:
            total = 0
            for stat, path in sorted(self._kept(), key=lambda kept: kept[0].st_mtime_ns, reverse=True):
                total += stat.st_size
                if self._too_old(stat) or total > self._config.max_bytes:
                    path.unlink(missing_ok=True)
        except OSError:
            logger.exception("the folder of files.path, %s, cannot be tidied", self._folder)

    def _kept(self) -> list[tuple[os.stat_result, Path]]:
        kept = []
        for path in self._folder.iterdir():
            if _NAME.fullmatch(path.name.removesuffix(_UNFINISHED)):
                with suppress(FileNotFoundError):  # another process tidies as well
                    kept.append((path.lstat(), path))
        return [(stat, path) for stat, path in kept if S_ISREG(stat.st_mode)]

    def _too_old(self, stat: os.stat_result) -> bool:
        return stat.st_mtime < time.time() - self._config.ttl_s


def url_maker(files: Files | None, request: Request) -> UrlOf:
    """Return what keeps the pictures of a request that asks for URLs. Raises InvalidRequest without files."""
    if files is None:
        message = "response_format: url needs the service's option files.path; ask for b64_json"
        raise InvalidRequest(message, "response_format")
    return partial(files.url_of, request=request)


def router(files: Files, dialect: Dialect) -> APIRouter:
    """Return the route that hands the files out."""
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
        """Return an image whose URL an answer has given."""
        content = await files.read(name)
        return Response(
            content, media_type=f"image/{name.rpartition('.')[2]}", headers={"X-Content-Type-Options": "nosniff"}
        )

    return routes
