"""Reads the headers of `.safetensors` files: what is in a file, without reading its gigabytes of weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from serve_app.errors import CheckpointError
from serve_app.weight_files import what_it_is


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
        raise CheckpointError(f"model.{setting}: {file} {what_it_is(file)}") from error
