"""Reads the file of an adapter: the very one that was asked for, whole, and with weights that are numbers."""

import hashlib
import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import SEEK_END, FileIO
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from serve_app.adapters.header import Header, NoAdapter, Span, header_of
from serve_app.recipe import hash_of_digest
from serve_app.weight_files import what_it_is

_MOST_NAMED = 3
_CHUNK = 2**24
_TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class Content:
    """A file's tensors, its metadata and its hash. The tensors share memory, each wherever it lies in the file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    hash: str


def read_tensors(file: Path, require: Callable[[Header], None], hash: str | None) -> Content:
    """Return what a file holds, on the CPU, read once. `require` sees its header first, and raises what is wrong.

    Raises NoAdapter if it cannot be read, holds what is no number, or has another hash than the one given.
    """
    try:
        with file.open("rb", buffering=0) as content:
            require(header := header_of(content, file))
            content.seek(0)
            # A file of 300 MiB takes 0.2 s to hash, about as long as all the rest.
            with ThreadPoolExecutor(max_workers=1) as beside:
                digest = hashlib.sha256()
                whole = _read(content, lambda part: beside.submit(digest.update, part))
                tensors = _tensors(whole, header, file)
                spoilt = [key for key, tensor in tensors.items() if not _finite(tensor)]
    except OSError as error:
        raise NoAdapter(what_it_is(file)) from error
    found = hash_of_digest(digest.hexdigest())
    if hash not in (None, found):
        raise NoAdapter("is another file by now; ask again")
    if spoilt:
        raise NoAdapter(f"holds weights that are no finite numbers: {some(spoilt)}; its training has failed")
    return Content(tensors, header.metadata, found)


def some(keys: Sequence[str]) -> str:
    """Return the first of some keys, and how many more there are."""
    more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
    return f"{', '.join(sorted(keys)[:_MOST_NAMED])}{more}"


def _read(file: FileIO, on_part: Callable[[memoryview], object]) -> mmap.mmap:
    """Return a file's bytes, and tell of each part once it is there."""
    whole = mmap.mmap(-1, file.seek(0, SEEK_END), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError, AttributeError):  # Linux alone has them; small pages take three times as long to fill
        whole.madvise(mmap.MADV_HUGEPAGE)
    file.seek(0)
    room, filled = memoryview(whole), 0
    while filled < len(room):
        part = room[filled : filled + _CHUNK]
        filled += (count := file.readinto(part))
        if not count:
            raise OSError("it has become shorter")
        on_part(part[:count])
    return whole


def _tensors(content: mmap.mmap, header: Header, file: Path) -> Mapping[str, Tensor]:
    """Return the tensors in a file's content. Raises NoAdapter where they do not lie one behind the other."""
    tensors, end = {}, 0
    for key, span in sorted(header.spans.items(), key=lambda item: (item[1].start, item[1].end)):
        shape, dtype = header.shapes[key], _type(span)
        if span.start != end or span.end - end != (count := prod(shape)) * dtype.itemsize:
            raise NoAdapter(what_it_is(file))
        end = span.end
        try:
            tensors[key] = (
                torch.frombuffer(content, dtype=dtype, count=count, offset=header.size + span.start).view(shape)
                if count
                else torch.empty(shape, dtype=dtype)
            )
        except (RuntimeError, TypeError) as error:  # its sides are negative, or beyond all bounds
            raise NoAdapter(what_it_is(file)) from error
    if header.size + end != len(content):
        raise NoAdapter(what_it_is(file))
    return tensors


def _type(span: Span) -> torch.dtype:
    if (dtype := _TYPES.get(span.dtype)) is None:  # some of the format's types have none in torch
        raise NoAdapter(f"holds weights of the type {span.dtype}, which cannot be read; save it in float16")
    return dtype


def _finite(tensor: Tensor) -> bool:
    # A sum tells many times faster than a look at each number; no sum of numbers that a layer can use is infinite in
    # 32 bits, and few are in 16. In 64 bits there are numbers that 32, in which all is merged, have not.
    own = {1: torch.float16, 8: torch.float32}.get(tensor.dtype.itemsize, tensor.dtype)
    return any(math.isfinite(tensor.to(own).sum(dtype=dtype).item()) for dtype in (None, torch.float32))
