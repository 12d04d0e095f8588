"""Textual inversion: vectors that stand in a prompt for tokens, one for each text encoder."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import nn

from serve_app.adapters import AdapterFolder
from serve_app.adapters.header import NoAdapter
from serve_app.adapters.kinds import EMBEDDING, require_embedding
from serve_app.config import AdaptersConfig
from serve_app.errors import AdapterError
from serve_app.recipe import Embedding
from serve_app.replica.adapter_files import read_tensors
from serve_app.replica.checkpoint import Checkpoint

_MOST_KEPT = 256


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """An embedding that was read: float32 (tokens, width) for each text encoder, on the CPU."""

    hash: str
    of_encoders: tuple[torch.Tensor, ...]

    def __len__(self) -> int:
        return len(self.of_encoders[0])


Embeddings = Mapping[str, Vectors]
"""By their names in prompts."""


@dataclass(frozen=True, slots=True)
class Insertion:
    """A place of a chunk where a row of an embedding stands, which is named by its hash."""

    place: int
    hash: str
    row: int


def make_embedding_store(config: AdaptersConfig, checkpoint: Checkpoint) -> "EmbeddingStore | None":
    """Return the store of a loaded model's embeddings; None if no adapters are served."""
    if config.folder is None:
        return None
    pipe = checkpoint.pipe
    widths = [encoder.config.hidden_size if encoder else 0 for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    room = min(tokenizer.model_max_length for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)) - 2
    return EmbeddingStore(AdapterFolder(config.folder), widths, room)


class EmbeddingStore:
    """Reads embeddings, and keeps the newest. All but `at_hand` block."""

    def __init__(self, folder: AdapterFolder, widths: Sequence[int], most_tokens: int) -> None:
        """Take the widths of the text encoders, and how many tokens they read at once."""
        self._folder = folder
        self._widths = widths
        self._most_tokens = most_tokens
        self._lock = Lock()
        self._kept: OrderedDict[str, Vectors] = OrderedDict()

    def at_hand(self, embeddings: Sequence[Embedding]) -> Embeddings | None:
        """Return embeddings by name if all have been read and kept. It never blocks."""
        kept = {one.name: vectors for one in embeddings if (vectors := self._kept_of(one.hash)) is not None}
        return kept if len(kept) == len(embeddings) else None

    def read(self, embeddings: Sequence[Embedding]) -> Embeddings:
        """Return embeddings by name.

        Raises AdapterError if one cannot be found or read, fits another model, or is another file than asked for.
        """
        return {one.name: self._read(one) for one in embeddings}

    @property
    def kept(self) -> frozenset[str]:
        """The embeddings that need not be read again, by their hashes."""
        with self._lock:
            return frozenset(self._kept)

    def _read(self, embedding: Embedding) -> Vectors:
        if (kept := self._kept_of(embedding.hash)) is not None:
            return kept  # its file may be gone by now
        found = self._folder.find_embedding(embedding.name)
        hash_ = self._folder.hash_of(found) if embedding.hash is None else embedding.hash
        if (kept := self._kept_of(hash_)) is not None:
            return kept
        try:
            vectors = self._vectors(found.version.path, hash_)
        except NoAdapter as error:
            raise AdapterError(embedding.name, str(error), "embeddings") from error
        with self._lock:
            self._kept[hash_] = vectors
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return vectors

    def _kept_of(self, hash_: str | None) -> Vectors | None:
        with self._lock:
            if hash_ is None or hash_ not in self._kept:
                return None
            self._kept.move_to_end(hash_)
            return self._kept[hash_]

    def _vectors(self, file: Path, hash_: str) -> Vectors:
        """Raises NoAdapter."""
        tensors = read_tensors(file, require_embedding, hash_).tensors
        if odd := [key for key in EMBEDDING if not tensors[key].is_floating_point()]:
            raise NoAdapter(f"holds {odd[0]} as {tensors[odd[0]].dtype}; save it in float16".replace("torch.", ""))
        vectors = tuple(tensors[key].float() for key in EMBEDDING)
        for key, own, width in zip(EMBEDDING, vectors, self._widths, strict=True):
            if own.dim() != 2 or own.shape[1] != width:
                raise NoAdapter(
                    f"was made for another model: its {key} is {tuple(own.shape)}, where the served model needs "
                    f"(tokens, {width})"
                )
        if len({len(own) for own in vectors}) > 1 or not 0 < len(vectors[0]) <= self._most_tokens:
            sizes = " and ".join(str(len(own)) for own in vectors)
            raise NoAdapter(f"takes {sizes} tokens; both must be equal, and from 1 to {self._most_tokens}")
        return Vectors(hash_, vectors)


@contextmanager
def inserted(
    pipe: StableDiffusionXLPipeline, places: Sequence[Sequence[Insertion]], vectors: Mapping[str, Vectors]
) -> Iterator[None]:
    """Put vectors, named by their hashes, where each text encoder would look up those of tokens."""
    encoders = (pipe.text_encoder, pipe.text_encoder_2)
    with ExitStack() as stack:
        for number, (encoder, own) in enumerate(zip(encoders, places, strict=True)):
            if own and encoder is not None:
                rows = torch.stack([vectors[each.hash].of_encoders[number][each.row] for each in own])
                hook = _Insert([each.place for each in own], rows)
                stack.callback(encoder.get_input_embeddings().register_forward_hook(hook).remove)
        yield


class _Insert:
    def __init__(self, places: Sequence[int], rows: torch.Tensor) -> None:
        self._places = places
        self._rows = rows

    def __call__(self, _: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, self._places] = self._rows.to(output.device, output.dtype)
        return changed
