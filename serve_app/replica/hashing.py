"""What a checkpoint is known by: the hash of its weights."""

import hashlib
import mmap
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

_HASH_DIGITS = 10


def weights_hash(path: Path, variant: str | None, vae_path: Path | None = None) -> str:
    """Return the first 10 hex digits of the SHA-256 of a single file, as other tools show it, or over a folder's weights.

    A VAE in the place of the checkpoint's own makes it another hash.
    """
    if path.is_file():
        digest = _sha256(path)
        return digest[:_HASH_DIGITS] if vae_path is None else _together([digest, *_digests(vae_path, None)])
    digests = [_digests(path / component, variant) for component in ("text_encoder", "text_encoder_2", "unet")]
    vae = _digests(path / "vae", variant) if vae_path is None else _digests(vae_path, None)
    return _together([*chain(*digests), *vae])


def _digests(folder: Path, variant: str | None) -> Iterator[str]:
    """Yield the SHA-256 of each file of a model's weights."""
    for file in sorted(folder.glob("*.safetensors")):
        if f".{variant}" in file.name if variant else file.name.count(".") == 1:
            yield _sha256(file)


def _together(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:_HASH_DIGITS]


def _sha256(path: Path) -> str:
    """Hash a file in one call: piece by piece, each piece would wait for the interpreter, which is busy at a start."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest()
