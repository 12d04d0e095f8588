"""Cuts prompts into what CLIP's text encoders read at once: chunks of 75 tokens."""

import copy
from dataclasses import dataclass
from functools import lru_cache

from diffusers import StableDiffusionXLPipeline

from serve_app.recipe import CHUNK_TOKENS, USUAL_PROMPT_TOKENS, Recipe

_REMEMBERED = 64
"""How many texts are not cut again: all images of a request have the same ones."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one text encoder reads at once: the ids of its tokens, from the start token to the padding."""

    ids: tuple[int, ...]


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


class PromptReader:
    """Reads the prompts of recipes, on any thread.

    It has its own tokenizers: truncation and padding are state of a tokenizer, and these never change theirs.
    """

    def __init__(self, pipe: StableDiffusionXLPipeline) -> None:
        self._pipe = pipe
        tokenizers = (pipe.tokenizer, pipe.tokenizer_2)
        self._tokenizers = [copy.deepcopy(tokenizer) for tokenizer in tokenizers if tokenizer is not None]
        self._cut = lru_cache(_REMEMBERED)(self._cut_anew)

    def read(self, recipe: Recipe, max_tokens: int = USUAL_PROMPT_TOKENS) -> ReadPrompts:
        """Return a recipe's prompts, of each no more than `max_tokens` tokens."""
        most = max_tokens // CHUNK_TOKENS
        fields = ("negative_prompt", "prompt") if recipe.guided else ("prompt",)
        cuts = {
            field: [self._cut(encoder, getattr(recipe, field), most) for encoder in range(len(self._tokenizers))]
            for field in fields
        }
        length = max(len(cut.chunks) for of_field in cuts.values() for cut in of_field)
        zeros = not recipe.negative_prompt and bool(self._pipe.config.force_zeros_for_empty_prompt)
        rows = tuple(
            PromptTokens(self._side_by_side(cuts[field], length), zeros and field == "negative_prompt")
            for field in fields
        )
        unread = {field: of_field[-1].unread for field, of_field in reversed(cuts.items())}
        warnings = (
            f"{field} is longer than the model can read; it does not see: {end}" for field, end in unread.items() if end
        )
        return ReadPrompts(rows, tuple(warnings))

    def _side_by_side(self, cuts: list[_Cut], length: int) -> tuple[tuple[Chunk, ...], ...]:
        """Return the chunks of all encoders, empty ones after those of a shorter text."""
        filled = [
            (*cut.chunks, *[self._chunk(encoder, [])] * (length - len(cut.chunks))) for encoder, cut in enumerate(cuts)
        ]
        return tuple(zip(*filled, strict=True))

    def _cut_anew(self, encoder: int, text: str, most: int) -> _Cut:
        encoded = self._tokenizers[encoder](
            text, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True
        )
        ids: list[int] = encoded.input_ids
        chunks = [
            self._chunk(encoder, ids[first : first + CHUNK_TOKENS]) for first in range(0, len(ids) or 1, CHUNK_TOKENS)
        ]
        read = most * CHUNK_TOKENS
        return _Cut(tuple(chunks[:most]), text[encoded.offset_mapping[read][0] :].strip() if len(ids) > read else "")

    def _chunk(self, encoder: int, ids: list[int]) -> Chunk:
        tokenizer = self._tokenizers[encoder]
        padding = [tokenizer.pad_token_id] * (CHUNK_TOKENS - len(ids))
        return Chunk((tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *padding))
