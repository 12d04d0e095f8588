"""Cuts prompts into what CLIP's text encoders read at once: chunks of 75 tokens, or fewer where a model says so."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from diffusers import StableDiffusionXLPipeline

from serve_app.recipe import CHUNK_TOKENS, USUAL_PROMPT_TOKENS, PromptSyntax, Recipe
from serve_app.replica.prompt_weights import Part, Piece, weighted

_REMEMBERED = 64
"""How many texts are not cut again: all images of a request have the same ones."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one text encoder reads at once: the ids of its tokens, from the start token to the padding.

    `weights` say how much each counts; None: all the same.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...] | None = None


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

    `warnings` say what is not read.
    """

    rows: tuple[PromptTokens, ...]
    warnings: tuple[str, ...] = ()

    @property
    def chunks(self) -> int:
        return len(self.rows[0].chunks)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A text as one text encoder reads it, and its end that is not read."""

    chunks: tuple[Chunk, ...]
    unread: str


class _Token(NamedTuple):
    """A token, its weight, and where it stands in its part of the prompt."""

    id: int
    weight: float
    place: int


class PromptReader:
    """Reads the prompts of recipes, on any thread.

    It has its own tokenizers: truncation and padding are state of a tokenizer, and these never change theirs.
    """

    def __init__(self, pipe: StableDiffusionXLPipeline) -> None:
        self._pipe = pipe
        self._tokenizers = [copy.deepcopy(tokenizer) for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)]
        # Both encoders are given equally many; the embedded model's read 30 at once.
        self._room = min(tokenizer.model_max_length for tokenizer in self._tokenizers) - 2  # without start and end
        self._cut = lru_cache(_REMEMBERED)(self._cut_anew)

    def read(self, recipe: Recipe, max_tokens: int = USUAL_PROMPT_TOKENS) -> ReadPrompts:
        """Return a recipe's prompts, of each no more chunks than `max_tokens` take with 75 tokens in each."""
        most = max_tokens // CHUNK_TOKENS
        rows = [_texts(recipe, field) for field in ("negative_prompt", "prompt")[0 if recipe.guided else 1 :]]
        cuts = [
            [self._cut(encoder, text, recipe.prompt_syntax, most) for encoder, (_, text) in enumerate(row)]
            for row in rows
        ]
        length = max(len(cut.chunks) for row in cuts for cut in row)
        zeros = self._pipe.config.force_zeros_for_empty_prompt
        prompts = tuple(
            PromptTokens(self._side_by_side(of_row, length), zeros=zeros and not any(text for _, text in row))
            for row, of_row in zip(rows, cuts, strict=True)
        )
        return ReadPrompts(prompts, tuple(_unread(rows, cuts)))

    def _side_by_side(self, cuts: Sequence[_Cut], length: int) -> tuple[tuple[Chunk, ...], ...]:
        """Return the chunks of all encoders, empty ones after those of a shorter text."""
        filled = [
            (*cut.chunks, *[self._chunk(encoder, [])] * (length - len(cut.chunks))) for encoder, cut in enumerate(cuts)
        ]
        return tuple(zip(*filled, strict=True))

    def _cut_anew(self, encoder: int, text: str, syntax: PromptSyntax, most: int) -> _Cut:
        chunks: list[Chunk] = []
        unread: list[str] = []
        for part in weighted(text) if syntax == "weighted" else [[Piece(text)]]:
            tokens = list(self._tokens(encoder, part))
            room = (most - len(chunks)) * self._room
            if room < len(tokens):
                unread.append("".join(piece.text for piece in part)[tokens[room].place :])
            firsts = range(0, min(len(tokens) or 1, room), self._room)
            chunks += [self._chunk(encoder, tokens[first : first + self._room]) for first in firsts]
        return _Cut(tuple(chunks), " ".join(unread).strip())

    def _tokens(self, encoder: int, part: Part) -> Iterator[_Token]:
        start = 0
        for piece in part:
            encoded = self._tokenizers[encoder](
                piece.text, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True
            )
            for id, (place, _) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
                yield _Token(id, piece.weight, start + place)
            start += len(piece.text)

    def _chunk(self, encoder: int, tokens: Sequence[_Token]) -> Chunk:
        tokenizer = self._tokenizers[encoder]
        filled = self._room - len(tokens)
        ids = (token.id for token in tokens)
        weights = (1.0, *(token.weight for token in tokens), 1.0, *[1.0] * filled)
        return Chunk(
            (tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * filled),
            weights if any(weight != 1.0 for weight in weights) else None,
        )


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
