"""Reads the headers of `.safetensors` files: what is in a file, without reading its gigabytes of weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from serve_app.errors import CheckpointError

_DAMAGED = "is not a complete .safetensors file; it may be damaged or cut off, download it again"
_PICKLED = "holds pickled weights, which are never loaded; convert it to .safetensors"
# How files begin. A .safetensors file: 8 bytes with the header's length, then the header's opening brace.
_KINDS = {
    rb".{4}\0{4}\{": _DAMAGED,
    rb"version https://git-lfs": "is a git-lfs pointer, not the file it stands for; fetch that with `git lfs pull`",
    rb"PK\x03\x04|\x80[\x02-\x05]": _PICKLED,
    rb"GGUF": "is a GGUF file; only .safetensors files are supported",
    rb"\s*<": "is a web page, not weights; download it again",
    rb"\Z": "is empty; download it again",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's shape and its type as safetensors names it, such as `F16`."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_integer(self) -> bool:
        return self.dtype.startswith(("I", "U", "BOOL"))


Header = Mapping[str, Tensor]


def read_header(setting: str, file: Path) -> Header:
    """Return a file's tensors by key. Raises CheckpointError if it is not a complete `.safetensors` file."""
    try:
        with safe_open(file, "pt") as content:
            slices = {key: content.get_slice(key) for key in content.keys()}  # noqa: SIM118, not a mapping
            return {key: Tensor(tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"model.{setting}: {file} {_what_it_is(file)}") from error


def _what_it_is(file: Path) -> str:
    try:
        with file.open("rb") as content:
            start = content.read(64)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return next((words for begins, words in _KINDS.items() if re.match(begins, start, re.DOTALL)), _DAMAGED)
