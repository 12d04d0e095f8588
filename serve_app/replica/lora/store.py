"""The adapters that a replica has read, kept on its device within bounds."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch

from serve_app.adapters import AdapterFolder, Version
from serve_app.config import AdaptersConfig
from serve_app.recipe import Lora
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.lora.delta import Delta
from serve_app.replica.lora.merging import Layers
from serve_app.replica.lora.packing import Packer
from serve_app.replica.lora.reading import Shapes, read_lora
from serve_app.replica.lora.sets import COMPONENTS, Adapters

logger = logging.getLogger("ray.serve")

_Components = Mapping[str, Mapping[str, Delta]]


def make_store(config: AdaptersConfig, checkpoint: Checkpoint) -> "LoraStore | None":
    """Return the store of a loaded model's adapters; None if none are served."""
    if config.folder is None:
        return None
    if not config.folder.is_dir():
        logger.warning("adapters.path: %s is not a folder here; requests find nothing in it", config.folder)
    models = {name: getattr(checkpoint.pipe, name) for name in COMPONENTS}
    all_shapes = {name: Layers(model).shapes for name, model in models.items() if model is not None}
    return LoraStore(AdapterFolder(config.folder), all_shapes, checkpoint.device, config.cache_bytes)


class LoraStore:
    """Reads adapters, each once as long as there is room. All but `at_hand` block: call them beside the denoising."""

    def __init__(self, folder: AdapterFolder, shapes: Shapes, device: torch.device, max_bytes: int) -> None:
        self._folder = folder
        self._shapes = shapes
        self._max_bytes = max_bytes
        self._reading = threading.Lock()  # one at a time: whoever waits may find that it was the same one
        self._keeping = threading.Lock()  # a slow disk does not hold up what is there already
        self._kept: OrderedDict[str, tuple[_Components, int]] = OrderedDict()  # by hash; the newest last
        self._packer = Packer(device)

    def at_hand(self, loras: Sequence[Lora]) -> Adapters | None:
        """Return adapters whose hashes are given, in this order, if all have been read and kept. It never blocks."""
        kept = [(lora, self._kept_of(lora.hash)) for lora in loras if lora.hash is not None]
        if len(kept) < len(loras) or any(components is None for _, components in kept):
            return None
        key = tuple((lora.hash, lora.scale) for lora, _ in kept if lora.hash is not None)
        return Adapters(key, tuple(components for _, components in kept if components is not None))

    def read(self, loras: Sequence[Lora]) -> Adapters:
        """Return adapters, in this order, on the device.

        Raises AdapterError if one cannot be found, read or applied, or is another file than the one asked for.
        """
        found = [self._read(lora) for lora in loras]
        key = tuple((hash_, lora.scale) for lora, (hash_, _) in zip(loras, found, strict=True))
        return Adapters(key, tuple(components for _, components in found))

    def check(self, loras: Sequence[Lora]) -> Mapping[Version, str]:
        """Read adapters, and return the hashes of their files, as far as these are still what was read.

        Raises AdapterError as `read` does.
        """
        self.read(loras)
        found = [self._folder.find(lora.name) for lora in loras]
        return {file.version: hash_ for file in found if (hash_ := self._folder.hash_if_known(file))}

    @property
    def kept(self) -> frozenset[str]:
        """The adapters that need not be read again, by their hashes."""
        with self._keeping:
            return frozenset(self._kept)

    def _read(self, lora: Lora) -> tuple[str, _Components]:
        """Return an adapter's hash, and what it changes."""
        if (known := self._known(lora)) is not None:
            return known
        with self._reading:
            if (known := self._known(lora)) is not None:
                return known
            version = self._folder.find(lora.name).version
            deltas = read_lora(version.path, self._shapes, lora.name, lora.hash)
            if version.is_current:
                self._folder.learn(version, deltas.hash)
            tensors = self._packer.pack(deltas.tensors())
            components = deltas.moved(tensors)
            self._keep(deltas.hash, components, sum(tensor.nbytes for tensor in tensors))
            return deltas.hash, components

    def _known(self, lora: Lora) -> tuple[str, _Components] | None:
        hash_ = lora.hash or self._folder.hash_if_known(self._folder.find(lora.name))
        if hash_ is None or (kept := self._kept_of(hash_)) is None:
            return None
        return hash_, kept  # its file may be gone by now

    def _kept_of(self, hash_: str) -> _Components | None:
        with self._keeping:
            if hash_ not in self._kept:
                return None
            self._kept.move_to_end(hash_)
            return self._kept[hash_][0]

    def _keep(self, hash_: str, components: _Components, size: int) -> None:
        """Keep what was read; drop the oldest, but never the newest: it is about to be used."""
        with self._keeping:
            self._kept[hash_] = components, size
            while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > self._max_bytes:
                self._kept.popitem(last=False)
