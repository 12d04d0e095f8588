"""Reads the header of a `.safetensors` file, without its weights and without torch."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from serve_app.weight_files import what_it_is

_LONGEST = 100_000_000
"""Bytes of a header; the format allows no more."""


class NoAdapter(Exception):
    """A file is not that of a LoRA for the served model; the message says what it is and what to do."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tensor lies, in bytes from the end of the header, and its type as the format names it, such as `F16`."""

    dtype: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its weights: the shapes and places of its tensors, and its metadata.

    `size` is its own length in bytes: the first weight lies there.
    """

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    spans: Mapping[str, Span]
    size: int


def read_header(file: Path) -> Header:
    """Return a file's header.

    Raises NoAdapter if it is not a complete `.safetensors` file, OSError if it cannot be read.
    """
    with file.open("rb") as content:
        return header_of(content, file)


def header_of(content: BinaryIO, file: Path) -> Header:
    """Return the header of an open file, which is at its start; see `read_header`."""
    try:
        length = int.from_bytes(content.read(8), "little")
        size = os.fstat(content.fileno()).st_size - 8 - length
        if length > _LONGEST or size < 0:
            raise ValueError
        return _header(json.loads(content.read(length)), 8 + length, size)
    # Nested too deeply it raises RecursionError, with numbers beyond all bounds ArithmeticError.
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise NoAdapter(what_it_is(file)) from error


def _header(said: Any, own: int, size: int) -> Header:
    metadata = said.pop("__metadata__", None) or {}
    spans = {key: Span(str(tensor["dtype"]), *map(int, tensor["data_offsets"])) for key, tensor in said.items()}
    if max((span.end for span in spans.values()), default=0) != size:
        raise ValueError
    shapes = {key: tuple(int(side) for side in tensor["shape"]) for key, tensor in said.items()}
    texts = {str(name): str(value) for name, value in metadata.items()}
    # Half a character is an error: the format is in UTF-8, and no answer could tell of it.
    "".join((*spans, *(span.dtype for span in spans.values()), *texts, *texts.values())).encode()
    return Header(shapes, texts, spans, own)
