"""API keys: who may use the service."""

import hashlib
import hmac
import os
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.client import client
from serve_app.config import AuthConfig
from serve_app.ingress.problems import Problems
from serve_app.schemas import Problem, can_be_key

_OPEN = {"/", "/health"}
_OPEN_BELOW = ("/playground/", "/files/")
_SCHEMES = {"bearer", "key"}  # OpenAI's and the service's own clients; fal's
_BASIC = "basic"  # A1111's: any user, with a key as the password


class KeyRing:
    """The valid API keys, from an environment variable and a file; the file is reloaded when it changes.

    Raises ValueError if a configured source holds no key: the service must not start open, or closed to everyone.
    """

    def __init__(self, auth: AuthConfig, environ: Mapping[str, str] = os.environ) -> None:
        self._fixed = _split(environ.get(auth.keys_env, ""), f"auth.keys_env: {auth.keys_env}") if auth.keys_env else []
        self._file = Path(auth.keys_file) if auth.keys_file else None
        self._read: tuple[tuple[int, int], list[bytes]] | None = None
        if auth.keys_env and not self._fixed:
            raise ValueError(f"auth.keys_env: the environment variable {auth.keys_env} is not set or holds no key")
        if self._file and not self._load(self._file):
            raise ValueError(f"auth.keys_file: {self._file} holds no key")

    def __contains__(self, key: str) -> bool:
        """Return whether a key is valid, in constant time: the timing must not help to guess a key."""
        given, found = key.encode(), False
        for valid in (*self._fixed, *self._from_file()):
            found |= hmac.compare_digest(given, valid)
        return found

    def _from_file(self) -> list[bytes]:
        """Return the file's keys, or none if it cannot be read: a lost or broken file must not open the service."""
        try:
            return self._load(self._file) if self._file else []
        except ValueError:
            return []

    def _load(self, file: Path) -> list[bytes]:
        """Return the file's keys; reload them if it has changed. Raises ValueError if it cannot be read."""
        try:
            stat = file.stat()
            version = (stat.st_mtime_ns, stat.st_ino)
            if self._read is None or self._read[0] != version:
                self._read = (version, _split(file.read_text(encoding="utf-8-sig"), f"auth.keys_file: {file}"))
        except FileNotFoundError as error:
            raise ValueError(f"auth.keys_file: there is no file {file}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"auth.keys_file: {file} cannot be read: {error}") from error
        return self._read[1]


def _split(text: str, source: str) -> list[bytes]:
    """Return the keys in a text. Raises ValueError if one could not be sent in a header."""
    keys = [key.strip() for key in text.replace(",", "\n").splitlines() if key.strip()]
    if not all(map(can_be_key, keys)):
        raise ValueError(
            f"{source} holds a key with a character not allowed in an HTTP header; use visible ASCII characters"
        )
    return [key.encode() for key in keys]


class Keys:
    """Refuses requests without a valid key with 401.

    The page, /health and stored files need no key: the names of stored files cannot be guessed.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing, problems: Problems) -> None:
        self._app = app
        self._ring = ring
        self._problems = problems

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._may_pass(scope):
            client.set(_name_of(_key_of(scope)) if scope["type"] == "http" and _key_of(scope) else None)
            await self._app(scope, receive, send)
            return
        problem = Problem(type="unauthorized", message="a valid API key is needed, sent as Authorization: Bearer KEY")
        await self._problems.answer(scope, 401, problem, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in _OPEN or path.startswith(_OPEN_BELOW):
            return True
        return _key_of(scope) in self._ring


def _key_of(scope: Scope) -> str:
    """Return the key a request carries, or an empty text, which is never a valid one."""
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() == _BASIC:
        return _password_in(key.strip())
    return key.strip() if scheme.lower() in _SCHEMES else ""


def _password_in(credentials: str) -> str:
    """Return the password of a user, whoever it is; empty if there is none."""
    try:
        return b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _name_of(key: str) -> str:
    """Return a name that says which key it is without telling the key."""
    return hashlib.sha256(key.encode()).hexdigest()
