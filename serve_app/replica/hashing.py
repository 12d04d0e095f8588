"""The hash that identifies a checkpoint, over everything that its pictures depend on."""

import hashlib
import json
import mmap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serve_app.replica.sources import TOKENIZERS, Sources, read_json

_HASH_DIGITS = 10
# Config fields that do not affect pictures. The dtype there is that of the files, which the weights already give.
_NOTES = ("architectures", "dtype", "name_or_path", "torch_dtype", "transformers_version")


def checkpoint_hash(sources: Sources, overrides: Mapping[str, Any]) -> str:
    """Return the first 10 hex digits of a SHA-256.

    For a single file it is the file's own SHA-256, as other tools show it, if pictures depend on nothing else: the
    configs are diffusers' usual ones, and no setting replaces anything in the file. Otherwise it covers the loaded
    files and everything else that pictures depend on. `overrides` are the scheduler settings that differ from the
    checkpoint's own.
    """
    # Each file once: a single file holds all models. Side by side, since a hash takes one core.
    files = list(dict.fromkeys(file for part in sources.parts.values() for file in part.files))
    with ThreadPoolExecutor(len(files), thread_name_prefix="hash") as threads:
        digests = dict(zip(files, threads.map(_sha256, files), strict=True))
    depends = {} if sources.usual else _root_depends(sources)
    if sources.parts["vae"].setting == "vae_path":
        depends["vae"] = _meaning(sources.parts["vae"].config)
    if overrides:
        depends["overrides"] = dict(overrides)
    if not depends:
        return digests[sources.path][:_HASH_DIGITS]
    whole = json.dumps([list(digests.values()), depends], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:_HASH_DIGITS]


def _root_depends(sources: Sources) -> dict[str, Any]:
    """Return the content of the configs and tokenizers."""
    return {
        **{name: _meaning(part.config) for name, part in sources.parts.items()},
        **{name: _tokenizer_files(sources, name) for name in TOKENIZERS},
        "scheduler": _meaning(sources.scheduler_config),
        "force_zeros_for_empty_prompt": bool(
            sources.read("model_index.json").get("force_zeros_for_empty_prompt", True)
        ),
    }


def _tokenizer_files(sources: Sources, name: str) -> dict[str, Any]:
    files = sorted(file for file in (sources.root / name).iterdir() if file.suffix in (".json", ".txt"))
    return {
        file.name: _meaning(read_json(sources.root_setting, file))
        if file.name == "tokenizer_config.json"
        else hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in _NOTES}


def _sha256(path: Path) -> str:
    """Hash a file in one call. Reading it in chunks would wait for the GIL at each, which is busy during start-up."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest()
