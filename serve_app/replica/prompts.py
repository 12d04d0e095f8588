"""Prompts to embeddings, by the pipeline's own encoder, kept for the next slot that asks for the same."""

import copy
from collections import OrderedDict
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline

from serve_app.replica.attention import prompt_context


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """`context` (1, sequence length, as `attention.prompt_context` says) and `pooled` (1, projection width), in the text encoders' dtype."""

    context: torch.Tensor
    pooled: torch.Tensor


class PromptEncoder:
    """Encodes one prompt at a time, so that an embedding never depends on what else is being painted."""

    def __init__(self, pipe: StableDiffusionXLPipeline, device: torch.device, cache_size: int) -> None:
        self._pipe = pipe
        self._device = device
        self._cache_size = cache_size
        self._cache: OrderedDict[str | None, PromptEmbedding] = OrderedDict()

    def encode(self, prompt: str) -> PromptEmbedding:
        """Return the embedding of a prompt, from the cache where it is known."""
        return self._cached(prompt)

    def encode_negative(self, negative_prompt: str) -> PromptEmbedding:
        """Return the unconditional embedding; an empty prompt means none, which is all zeros if the checkpoint says so."""
        if not negative_prompt and self._pipe.config.force_zeros_for_empty_prompt:
            return self._cached(None)
        return self._cached(negative_prompt)

    def _cached(self, prompt: str | None) -> PromptEmbedding:
        if prompt not in self._cache:
            self._cache[prompt] = self._encode(prompt)
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        self._cache.move_to_end(prompt)
        return self._cache[prompt]

    def _encode(self, prompt: str | None) -> PromptEmbedding:
        tokens, _, pooled, _ = self._pipe.encode_prompt(prompt or "", device=self._device, do_classifier_free_guidance=False)
        if prompt is None:
            tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
        return PromptEmbedding(prompt_context(self._pipe.unet, tokens), pooled)


class PromptReader:
    """Says what the text encoders do not see of a prompt.

    It has a tokenizer of its own: a tokenizer keeps its truncation and padding as state, and the engine's is in use on
    another thread.
    """

    def __init__(self, pipe: StableDiffusionXLPipeline) -> None:
        self._tokenizer = copy.deepcopy(pipe.tokenizer_2)
        self.room: int = pipe.tokenizer_2.model_max_length - 2  # but for the start and end tokens

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that the text encoders do not see, empty if they see all of it."""
        encoded = self._tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True)
        offsets: list[tuple[int, int]] = encoded.offset_mapping
        return prompt[offsets[self.room][0] :].strip() if len(offsets) > self.room else ""
