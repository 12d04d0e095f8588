"""Images stored as files for a limited time."""

import asyncio
import base64
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from tempfile import TemporaryFile
from typing import get_args

from serve_app.background import background
from serve_app.config import FilesConfig
from serve_app.errors import NotFound
from serve_app.recipe import OutputFormat
from serve_app.schemas import Grid, Picture
from serve_app.threads import Threads

logger = logging.getLogger("ray.serve")

NAME = re.compile(rf"[\w-]{{32}}\.({'|'.join(get_args(OutputFormat))})", re.ASCII)
_UNFINISHED = ".part"
_TIDY_INTERVAL_S = 60.0


_THREADS = 4
"""For all work on the folder, and for nothing else: where its file system hangs, so do they."""


class Files:
    """A folder of images. Several processes may share it; its only state is the files.

    A file is named after its content, so that a picture is stored once however often it is told. Deletes files that
    were not told for `ttl_s`, and the oldest while all together exceed `max_bytes`. Never touches files with other
    names. Raises ValueError if the folder cannot be written to.
    """

    def __init__(self, folder: Path, config: FilesConfig) -> None:
        self.base_url = config.base_url
        self._folder = folder
        self._config = config
        self._threads = Threads(_THREADS, "files")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(f"files.path: {folder} cannot be created or written to: {error}") from error

    @asynccontextmanager
    async def tidied(self) -> AsyncIterator[None]:
        """Delete expired files regularly while the context is open."""

        async def keep_tidy() -> None:
            while True:
                await self._threads.run(self._tidy)
                await asyncio.sleep(min(_TIDY_INTERVAL_S, self._config.ttl_s))

        async with background(keep_tidy()):
            yield

    async def keep(self, picture: Picture | Grid) -> str:
        """Return the name of a file with a picture, newly written or not. Raises OSError if it cannot be written."""
        return await self._threads.run(self._save, picture)

    async def read(self, name: str) -> bytes:
        """Return a file written by `keep`. Raises NotFound."""
        if NAME.fullmatch(name):
            with suppress(FileNotFoundError):
                return await self._threads.run(self._read, self._folder / name)
        raise NotFound("there is no such file, or it has expired")

    def _read(self, path: Path) -> bytes:
        stat = path.lstat()
        if not S_ISREG(stat.st_mode) or self._too_old(stat):
            raise FileNotFoundError
        return path.read_bytes()

    def _save(self, picture: Picture | Grid) -> str:
        content, suffix = base64.b64decode(picture.b64_json), picture.media_type.removeprefix("image/")
        path = self._folder / f"{_name_of(content)}.{suffix}"
        try:
            os.utime(path, follow_symlinks=False)  # its time begins anew
        except FileNotFoundError:
            self._write(path, content)
            self._tidy()
        return path.name

    def _write(self, path: Path, content: bytes) -> None:
        unfinished = path.with_name(f"{secrets.token_urlsafe(24)}{path.suffix}{_UNFINISHED}")
        try:
            unfinished.write_bytes(content)
            unfinished.rename(path)
        except OSError:
            with suppress(OSError):
                unfinished.unlink()  # half a file would take what room is left
            raise

    def _tidy(self) -> None:
        """Delete expired files, and the oldest above `max_bytes`. Only log failures: pictures are still served."""
        try:
            total = 0
            for stat, path in sorted(self._kept(), key=lambda kept: kept[0].st_mtime_ns, reverse=True):
                total += stat.st_size
                if self._too_old(stat) or total > self._config.max_bytes:
                    path.unlink(missing_ok=True)
        except OSError:
            logger.exception("cannot delete old images in files.path (%s)", self._folder)

    def _kept(self) -> list[tuple[os.stat_result, Path]]:
        kept = []
        for path in self._folder.iterdir():
            if NAME.fullmatch(path.name.removesuffix(_UNFINISHED)):
                with suppress(FileNotFoundError):  # another process deleted it
                    kept.append((path.lstat(), path))
        return [(stat, path) for stat, path in kept if S_ISREG(stat.st_mode)]

    def _too_old(self, stat: os.stat_result) -> bool:
        return stat.st_mtime < time.time() - self._config.ttl_s


def _name_of(content: bytes) -> str:
    """Return a name that only who has the content knows: 32 characters."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()[:24]).decode()
