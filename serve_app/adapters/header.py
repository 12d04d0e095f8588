"""Reads the header of a `.safetensors` file, without its weights and without torch."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.weight_files import what_it_is

_LONGEST = 100_000_000
"""Bytes of a header; the format allows no more."""


class NoAdapter(Exception):
    """A file is not that of a LoRA for the served model; the message says what it is and what to do."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its weights: the shapes of its tensors, and its metadata."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read_header(file: Path) -> Header:
    """Return a file's header.

    Raises NoAdapter if it is not a complete `.safetensors` file, OSError if it cannot be read.
    """
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            size = os.fstat(content.fileno()).st_size - 8 - length
            if length > _LONGEST or size < 0:
                raise ValueError
            return _header(json.loads(content.read(length)), size)
    # Nested too deeply it raises RecursionError, with numbers beyond all bounds ArithmeticError.
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise NoAdapter(what_it_is(file)) from error


def _header(said: Any, size: int) -> Header:
    metadata = said.pop("__metadata__", None) or {}
    ends = [tensor["data_offsets"][1] for tensor in said.values()]
    if max(ends, default=0) != size:
        raise ValueError
    shapes = {key: tuple(int(side) for side in tensor["shape"]) for key, tensor in said.items()}
    return Header(shapes, {str(name): str(value) for name, value in metadata.items()})
