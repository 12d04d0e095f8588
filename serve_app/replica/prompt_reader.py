"""Cuts prompts into what CLIP's text encoders read at once: chunks of 75 tokens, or fewer where a model says so."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from diffusers import StableDiffusionXLPipeline

from serve_app.prompt_embeddings import split
from serve_app.prompt_weights import Part, Piece, weighted
from serve_app.recipe import CHUNK_TOKENS, USUAL_PROMPT_TOKENS, PromptSyntax, Recipe
from serve_app.replica.embeddings import Embeddings, Insertion, Vectors

_REMEMBERED = 64
"""How many texts are not cut again: all images of a request have the same ones."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one text encoder reads at once: the ids of its tokens, from the start token to the padding.

    `weights` say how much each counts; None: all the same. `insertions` are the places of embeddings.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    insertions: tuple[Insertion, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt as the text encoders read it: `chunks`, each of them one `Chunk` for each encoder.

    `zeros`: its embedding is all zeros, because the checkpoint says so of an empty negative prompt.
    """

    chunks: tuple[tuple[Chunk, ...], ...]
    zeros: bool = False


@dataclass(frozen=True, slots=True)
class ReadPrompts:
    """A recipe's prompts, all of the same number of chunks: the unconditional one, if there is guidance, then its own.

    `warnings` say what is not read. `vectors` are those of their embeddings, by hash. `before` are the prompts of a
    branch's phases before these; each may have another number of chunks.
    """

    rows: tuple[PromptTokens, ...]
    warnings: tuple[str, ...] = ()
    vectors: Mapping[str, Vectors] = field(default_factory=dict)
    before: "tuple[ReadPrompts, ...]" = ()

    @property
    def phases(self) -> "tuple[ReadPrompts, ...]":
        """Those of all phases, in their order."""
        return *self.before, self

    @property
    def chunks(self) -> int:
        return len(self.rows[0].chunks)

    @property
    def half(self) -> bool:
        """Whether the unconditional prompt is zeros, so that cross-attention is needed for every second row alone."""
        return self.rows[0].zeros


@dataclass(frozen=True, slots=True)
class _Cut:
    """A text as one text encoder reads it, and its end that is not read."""

    chunks: tuple[Chunk, ...]
    unread: str


class _Known(NamedTuple):
    """An embedding that a text may name, and how many tokens it takes."""

    name: str
    hash: str
    tokens: int


class _Token(NamedTuple):
    """A token, its weight, and where it stands in its part of the prompt.

    `vector`: the row of an embedding that stands there instead. `together`: how many tokens from here on belong into
    one chunk.
    """

    id: int
    weight: float
    place: int
    vector: tuple[str, int] | None = None
    together: int = 1


class PromptReader:
    """Reads the prompts of recipes, on any thread.

    Truncation and padding are state of a tokenizer. That of the pipeline's never changes, since nobody else uses them:
    to copy them would take most of a second.
    """

    def __init__(self, pipe: StableDiffusionXLPipeline) -> None:
        self._pipe = pipe
        self._tokenizers = [pipe.tokenizer, pipe.tokenizer_2]
        # Both encoders are given equally many; the embedded model's read 30 at once.
        self._room = min(tokenizer.model_max_length for tokenizer in self._tokenizers) - 2  # without start and end
        self._cut = lru_cache(_REMEMBERED)(self._cut_anew)

    def read(
        self, recipe: Recipe, max_tokens: int = USUAL_PROMPT_TOKENS, embeddings: Embeddings | None = None
    ) -> ReadPrompts:
        """Return a recipe's prompts, of each no more chunks than `max_tokens` take with 75 tokens in each.

        `embeddings` are those that it names; others are words.
        """
        *before, own = (self._read(phase, max_tokens, embeddings) for phase in recipe.phases)
        told = list(own.warnings)
        for place, phase in enumerate(before):  # a phase may have the recipe's own prompts
            told += [f"before.{place}.{warning}" for warning in phase.warnings if warning not in own.warnings]
        return replace(own, warnings=tuple(told), before=tuple(before))

    def _read(self, recipe: Recipe, max_tokens: int, embeddings: Embeddings | None) -> ReadPrompts:
        known = tuple(_Known(name, own.hash, len(own)) for name, own in sorted((embeddings or {}).items()))
        most = max_tokens // CHUNK_TOKENS
        rows = [_texts(recipe, field) for field in ("negative_prompt", "prompt")[0 if recipe.guided else 1 :]]
        cuts = [
            [self._cut(encoder, text, recipe.prompt_syntax, most, known) for encoder, (_, text) in enumerate(row)]
            for row in rows
        ]
        length = max(len(cut.chunks) for row in cuts for cut in row)
        zeros = self._pipe.config.force_zeros_for_empty_prompt
        prompts = tuple(
            PromptTokens(self._side_by_side(of_row, length), zeros=zeros and not any(text for _, text in row))
            for row, of_row in zip(rows, cuts, strict=True)
        )
        return ReadPrompts(prompts, tuple(_unread(rows, cuts)), {own.hash: own for own in (embeddings or {}).values()})

    def _side_by_side(self, cuts: Sequence[_Cut], length: int) -> tuple[tuple[Chunk, ...], ...]:
        """Return the chunks of all encoders, empty ones after those of a shorter text."""
        filled = [
            (*cut.chunks, *[self._chunk(encoder, [])] * (length - len(cut.chunks))) for encoder, cut in enumerate(cuts)
        ]
        return tuple(zip(*filled, strict=True))

    def _cut_anew(
        self, encoder: int, text: str, syntax: PromptSyntax, most: int, known: tuple[_Known, ...] = ()
    ) -> _Cut:
        chunks: list[Chunk] = []
        unread: list[str] = []
        for part in weighted(text) if syntax == "weighted" else [[Piece(text)]]:
            filled = list(self._filled(self._tokens(encoder, part, known)))
            room = most - len(chunks)
            if beyond := [token for tokens in filled[room:] for token in tokens]:
                unread.append("".join(piece.text for piece in part)[beyond[0].place :])
            chunks += [self._chunk(encoder, tokens) for tokens in filled[:room]]
        return _Cut(tuple(chunks), " ".join(unread).strip())

    def _filled(self, tokens: Iterator[_Token]) -> Iterator[Sequence[_Token]]:
        """Yield what goes into each chunk; at least one, which may be empty."""
        chunk: list[_Token] = []
        for token in tokens:
            if len(chunk) + token.together > self._room:
                yield chunk
                chunk = []
            chunk.append(token)
        yield chunk

    def _tokens(self, encoder: int, part: Part, known: Sequence[_Known]) -> Iterator[_Token]:
        by_name = {embedding.name: embedding for embedding in known}
        start = 0
        for piece in part:
            for name, text in split(piece.text):
                if name in by_name:
                    yield from _vectors(by_name[name], piece.weight, start)
                else:
                    yield from self._words(encoder, text, piece.weight, start)
                start += len(text)

    def _words(self, encoder: int, text: str, weight: float, start: int) -> Iterator[_Token]:
        encoded = self._tokenizers[encoder](
            text, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True
        )
        for id, (place, _) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
            yield _Token(id, weight, start + place)

    def _chunk(self, encoder: int, tokens: Sequence[_Token]) -> Chunk:
        tokenizer = self._tokenizers[encoder]
        filled = self._room - len(tokens)
        ids = (token.id for token in tokens)
        weights = (1.0, *(token.weight for token in tokens), 1.0, *[1.0] * filled)
        return Chunk(
            (tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * filled),
            weights if any(weight != 1.0 for weight in weights) else None,
            tuple(Insertion(place, *token.vector) for place, token in enumerate(tokens, 1) if token.vector),
        )


_PLACEHOLDER = 0
"""The id where an embedding stands. It must not be the greatest: that is how some text encoders find the end."""


def _vectors(embedding: _Known, weight: float, place: int) -> Iterator[_Token]:
    for row in range(embedding.tokens):
        together = 1 if row else embedding.tokens
        yield _Token(_PLACEHOLDER, weight, place, (embedding.hash, row), together)


def _texts(recipe: Recipe, field: str) -> Sequence[tuple[str, str]]:
    """Return what each encoder reads of a prompt: the name of a field of the recipe, and its text."""
    first = (field, getattr(recipe, field))
    second = (f"{field}_2", getattr(recipe, f"{field}_2"))
    return first, second if second[1] else first


def _unread(rows: Sequence[Sequence[tuple[str, str]]], cuts: Sequence[Sequence[_Cut]]) -> Iterator[str]:
    """Yield a sentence for each text that is not read to its end, the prompt's first."""
    told = zip(chain(*reversed(rows)), chain(*reversed(cuts)), strict=True)
    ends = {name: cut.unread for (name, _), cut in told}
    return (f"{name} is longer than the model can read; it does not see: {end}" for name, end in ends.items() if end)
