"""Reads the file of an adapter: the very one that was asked for, whole, and with weights that are numbers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from serve_app.adapters.header import NoAdapter
from serve_app.recipe import hash_of_digest
from serve_app.weight_files import what_it_is

_MOST_NAMED = 3


def read_tensors(file: Path, hash: str | None) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """Return a file's tensors, on the CPU, and its metadata.

    Raises NoAdapter if it cannot be read, holds what is no number, or has another hash than the one given.
    """
    try:
        content = file.read_bytes()
        # A file of 300 MiB takes 0.2 s to hash, about as long as all the rest.
        with ThreadPoolExecutor(max_workers=1) as beside:
            digest = beside.submit(lambda: hashlib.sha256(content).hexdigest())
            # Copied, so that no bits depend on where in the file a tensor lay.
            tensors = {key: tensor.clone() for key, tensor in load(content).items()}
            spoilt = [key for key, tensor in tensors.items() if not _finite(tensor)]
    except (OSError, SafetensorError) as error:
        raise NoAdapter(what_it_is(file)) from error
    except KeyError as error:  # some of the format's types have none in torch
        raise NoAdapter(
            f"holds weights of the type {error.args[0]}, which cannot be read; save it in float16"
        ) from error
    if hash is not None and hash != hash_of_digest(digest.result()):
        raise NoAdapter("is another file by now; ask again")
    if spoilt:
        raise NoAdapter(f"holds weights that are no finite numbers: {some(spoilt)}; its training has failed")
    return tensors, json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__") or {}


def some(keys: Sequence[str]) -> str:
    """Return the first of some keys, and how many more there are."""
    more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
    return f"{', '.join(sorted(keys)[:_MOST_NAMED])}{more}"


def _finite(tensor: Tensor) -> bool:
    # A sum tells many times faster than a look at each number; no sum of numbers that a layer can use is infinite.
    wide = tensor.half() if tensor.dtype.itemsize == 1 else tensor
    return bool(wide.sum(dtype=torch.float32).isfinite())
