"""The folder of adapters: finds files by name, and says what each holds. New files count at once.

A name is a file's path inside the folder without its suffix, as `pixel-art` or `styles/pixel-art`.
"""

import difflib
import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from serve_app.adapters.header import NoAdapter, read_header
from serve_app.adapters.kinds import EMBEDDING, family_of, is_embedding, require_embedding, require_lora
from serve_app.adapters.said import rank_of, trigger_words
from serve_app.errors import AdapterError
from serve_app.prompt_embeddings import can_be_named
from serve_app.recipe import LONGEST_NAME, hash_of_digest

SUFFIX = ".safetensors"
_PICKLED = (".pt", ".ckpt", ".bin", ".pth")
_MOST_FILES = 10_000
_DEEPEST = 8
_MOST_NEAR = 3
_MOST_SEARCHED = 1000
"""Files that are looked at for what is missing: thousands would take longer than an error may."""
_MOST_REMEMBERED = 2 * _MOST_FILES
_LEADS_OUT = "is a link that leads out of adapters.path, or nowhere; put the file itself there"
_UNNAMEABLE = (
    "has a name that no prompt can write; rename its file: letters, digits and _ . - + / can be written, and a letter, "
    "digit or _ at the end"
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Version:
    """A file as it is now; one that was written anew is another.

    So is one that took its name: files that were unpacked may all have one time, and LoRAs of one rank one size.
    """

    path: Path
    size: int
    inode: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> "Version":
        """Return that of a file, or of a link itself. Raises OSError."""
        stat = path.lstat()
        return cls(path, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)

    @property
    def is_current(self) -> bool:
        """Whether the file is still this one."""
        try:
            return Version.of(self.path) == self
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA or an embedding in the folder."""

    name: str
    version: Version
    trigger_words: tuple[str, ...]
    base_model: str | None
    rank: int | None
    tokens: int | None
    """How many tokens of a prompt an embedding takes; None for a LoRA."""
    unusable: str | None
    """Why it cannot be used; None if nothing in its header speaks against it."""


class _Remembered(Generic[T]):
    """What was found out of each version of a file, once."""

    def __init__(self, find_out: Callable[[Version], T]) -> None:
        self._find_out = find_out
        self._known: dict[Version, T] = {}
        self._lock = Lock()

    def of(self, version: Version) -> T:
        with self._lock:
            if version in self._known:
                return self._known[version]
        found = self._find_out(version)
        self.learn(version, found)
        return found

    def learn(self, version: Version, found: T) -> None:
        with self._lock:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[version] = found

    def known(self, version: Version) -> T | None:
        with self._lock:
            return self._known.get(version)


class AdapterFolder:
    """The adapters in a folder. All methods read files, so they belong in a thread; threads may share it.

    `model` is the name of the model that they are of where there are several.
    """

    def __init__(self, path: Path, model: str = "") -> None:
        self._root, self._model = path, model
        self._headers = _Remembered(_described)
        self._hashes = _Remembered(_hash)

    def loras(self, among: Collection[str] | None = None) -> list[Adapter]:
        """Return all LoRAs by name, and what else cannot be used.

        With `among` only those with one of these names, in whichever folders; other files are not looked at.
        """
        return [one for one in self._all(lambda name: _in_any_folder(name, among)) if one.tokens is None]

    def embeddings(self, among: Collection[str] | None = None) -> list[Adapter]:
        """Return all embeddings by name, those for other models too.

        With `among` only those with one of these names, in lower case; other files are not looked at.
        """
        return [one for one in self._all(lambda name: among is None or name.lower() in among) if one.tokens is not None]

    def find(self, name: str) -> Adapter:
        """Return a LoRA by its name. Raises AdapterError if there is none, or it cannot be used."""
        adapter = self._found(name, "loras")
        if adapter.tokens is not None:
            raise AdapterError(
                name, f"is a textual inversion embedding, not a LoRA; write embedding:{name} in the prompt"
            )
        if adapter.unusable:
            raise AdapterError(name, adapter.unusable)
        return adapter

    def find_embedding(self, name: str) -> Adapter:
        """Return an embedding by its name. Raises AdapterError if there is none, or it cannot be used."""
        adapter = self._found(name, "embeddings")
        if adapter.tokens is None:
            raise AdapterError(name, adapter.unusable or "is a LoRA, not an embedding; name it in loras", "embeddings")
        if adapter.unusable:
            raise AdapterError(name, adapter.unusable, "embeddings")
        return adapter

    def _all(self, wanted: Callable[[str], bool]) -> list[Adapter]:
        names = filter(wanted, self._names())
        return [adapter for name in sorted(names) if (adapter := self._adapter_if_there(name))]

    def _found(self, name: str, param: str) -> Adapter:
        try:
            return self._adapter(name)
        except (OSError, ValueError) as error:
            raise AdapterError(name, self._missing(name, param), param) from error

    def hash_of(self, adapter: Adapter) -> str:
        """Return the start of its file's SHA-256, as requests and pictures name it; reads the file the first time.

        Raises AdapterError if it cannot be read.
        """
        try:
            return self._hashes.of(adapter.version)
        except OSError as error:
            raise AdapterError(adapter.name, f"cannot be read: {error.strerror}") from error

    def hash_if_known(self, adapter: Adapter) -> str | None:
        return self._hashes.known(adapter.version)

    def learn(self, version: Version, hash: str) -> None:
        """Take the hash of a file from whoever has read it."""
        self._hashes.learn(version, hash)

    def _adapter_if_there(self, name: str) -> Adapter | None:
        try:
            return self._adapter(name)
        except (OSError, ValueError):
            return None

    def _adapter(self, name: str) -> Adapter:
        """Raises OSError if there is no such file, ValueError if the name leads out of the folder."""
        file = self._file(name)
        if file is None:
            return _unusable(name, Version.of(self._root / f"{name}{SUFFIX}"), _LEADS_OUT)
        version = Version.of(file)
        try:
            words, base_model, rank, tokens, unusable = self._headers.of(version)
        except OSError as error:
            return _unusable(name, version, f"cannot be read: {error.strerror}")
        if tokens is not None and unusable is None and not can_be_named(name):
            unusable = _UNNAMEABLE
        return Adapter(name, version, words, base_model, rank, tokens, unusable)

    def _file(self, name: str) -> Path | None:
        """Return the file of a name; None where it is a link that leads out of the folder, or nowhere."""
        if not _stays_inside(name):
            raise ValueError
        # Texts, as in `_names`: to make paths of thousands of names takes longer than to look them up.
        path = f"{self._root}/{name}{SUFFIX}"
        try:
            file = os.path.realpath(path, strict=True)
        except OSError:
            if os.path.islink(path):
                return None
            raise
        if not file.startswith(f"{os.path.realpath(self._root)}/"):
            return None
        if not os.path.isfile(file):
            raise ValueError
        return Path(file)

    def _names(self) -> Iterator[str]:
        found = 0
        for folder, folders, files in os.walk(self._root):
            inside = f"{folder}/".removeprefix(f"{self._root}/")
            folders[:] = [name for name in folders if not name.startswith(".")] if inside.count("/") < _DEEPEST else []
            for file in files:
                name = f"{inside}{file.removesuffix(SUFFIX)}"
                if file.endswith(SUFFIX) and not file.startswith(".") and len(name) <= LONGEST_NAME:
                    found += 1
                    if found > _MOST_FILES:
                        return
                    if name.isprintable():
                        yield name

    def _missing(self, name: str, param: str) -> str:
        if _stays_inside(name) and (pickled := [end for end in _PICKLED if (self._root / f"{name}{end}").is_file()]):
            return f"is a {pickled[0]} file, whose pickled weights are never loaded; convert it to {SUFFIX}"
        if not self._root.is_dir():
            return "is not there: adapters.path is not a folder"
        names = sorted(self._names())
        if near := [one for one in _near(name, names) if self._is_one(one, param)]:
            return f"is not in adapters.path; similar names: {', '.join(near)}"
        if len(names) > _MOST_SEARCHED or any(self._is_one(one, param) for one in names):
            return f"is not in adapters.path; see GET /{param}{self._model and f'?model={self._model}'}"
        return f"is not in adapters.path, which holds no {'LoRA' if param == 'loras' else 'embedding'}"

    def _is_one(self, name: str, param: str) -> bool:
        """Return whether a name is that of a LoRA, or else of an embedding, as `param` says."""
        adapter = self._adapter_if_there(name)
        return adapter is not None and (adapter.tokens is None) == (param == "loras")


def _stays_inside(name: str) -> bool:
    return "\\" not in name and name.isprintable() and all(step and step[0] != "." for step in name.split("/"))


def _in_any_folder(name: str, among: Collection[str] | None) -> bool:
    return among is None or name.rpartition("/")[2] in among


def _near(name: str, names: list[str]) -> list[str]:
    lower = {known.lower(): known for known in names}
    last = name.lower().removesuffix(SUFFIX)
    same = [known for plain, known in lower.items() if plain == last or plain.rpartition("/")[2] == last]
    close = [lower[plain] for plain in difflib.get_close_matches(last, lower, _MOST_NEAR)]
    return list(dict.fromkeys([*same, *close]))[:_MOST_NEAR]


def _unusable(name: str, version: Version, why: str) -> Adapter:
    return Adapter(name, version, (), None, None, None, why)


_Described = tuple[tuple[str, ...], str | None, int | None, int | None, str | None]
"""The fields of an `Adapter` that its header tells."""


def _described(version: Version) -> _Described:
    """Raises OSError if the file cannot be read."""
    try:
        header = read_header(version.path)
    except NoAdapter as error:
        return (), None, None, None, str(error)
    embedding = is_embedding(header)
    try:
        (require_embedding if embedding else require_lora)(header)
        unusable = None
    except NoAdapter as error:
        unusable = str(error)
    words = tuple(trigger_words(header.metadata))
    if embedding:
        tokens = max((shape[0] for key, shape in header.shapes.items() if key in EMBEDDING and shape), default=0)
        return words, None, None, tokens, unusable
    return words, family_of(header), rank_of(header), None, unusable


def _hash(version: Version) -> str:
    with version.path.open("rb") as file:
        return hash_of_digest(hashlib.file_digest(file, "sha256").hexdigest())
