"""Prompts to embeddings, by the pipeline's own encoder, kept for the next slot that asks for the same."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline

from serve_app.messages import Slot
from serve_app.replica.attention import prompt_context
from serve_app.replica.device import to_device
from serve_app.replica.recordings import recorded


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """A prompt as the UNet takes it, in the text encoders' dtype.

    `context` is (1, sequence length, as `attention.prompt_context` says), `pooled` (1, projection width).
    """

    context: torch.Tensor
    pooled: torch.Tensor


class TextEncoders:
    """A pipeline's text encoders as one program.

    Takes token ids (1, length) for each of them, returns tokens (1, length, width) and pooled (1, projection width).
    """

    def __init__(self, pipe: StableDiffusionXLPipeline, device: torch.device) -> None:
        self._encoders = [encoder for encoder in (pipe.text_encoder, pipe.text_encoder_2) if encoder is not None]
        # transformers makes a mask of its own only while it is being recorded; given one, it always does the same.
        length = pipe.tokenizer_2.model_max_length
        self._mask = (
            None if device.type == "cpu" else torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()
        )

    def __call__(self, *ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = [
            encoder(own, attention_mask=self._mask, output_hidden_states=True)
            for encoder, own in zip(self._encoders, ids, strict=True)
        ]
        # SDXL was trained on the last but one layer of each, and on the pooled output of the last.
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds

    def warm_up(self, *ids: torch.Tensor) -> None:
        pass


class PromptEncoder:
    """Encodes one prompt at a time, so that an embedding never depends on what else is being painted."""

    def __init__(self, pipe: StableDiffusionXLPipeline, device: torch.device, cache_size: int) -> None:
        self._pipe = pipe
        self._device = device
        self._tokenizers = [tokenizer for tokenizer in (pipe.tokenizer, pipe.tokenizer_2) if tokenizer is not None]
        self._encoders = recorded(TextEncoders(pipe, device), device)
        self._cache_size = cache_size
        self._cache: OrderedDict[str | None, PromptEmbedding] = OrderedDict()

    def conditions(self, slot: Slot) -> Sequence[PromptEmbedding]:
        """Return what a slot is painted by: the prompt's embedding, after the unconditional one with guidance."""
        prompt = self.encode(slot.prompt)
        return [self.encode_negative(slot.negative_prompt), prompt] if slot.guidance_scale > 1 else [prompt]

    def encode(self, prompt: str) -> PromptEmbedding:
        """Return the embedding of a prompt, from the cache where it is known."""
        return self._cached(prompt)

    def encode_negative(self, negative_prompt: str) -> PromptEmbedding:
        """Return the unconditional embedding; for an empty prompt it is all zeros if the checkpoint says so."""
        if not negative_prompt and self._pipe.config.force_zeros_for_empty_prompt:
            return self._cached(None)
        return self._cached(negative_prompt)

    def warm_up(self) -> None:
        """Record the text encoders, where the device records."""
        self._encoders.warm_up(*self._ids(""))

    def _cached(self, prompt: str | None) -> PromptEmbedding:
        if prompt not in self._cache:
            self._cache[prompt] = self._encode(prompt)
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        self._cache.move_to_end(prompt)
        return self._cache[prompt]

    def _encode(self, prompt: str | None) -> PromptEmbedding:
        tokens, pooled = self._encoders(*self._ids(prompt or ""))
        if prompt is None:
            tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
        # A copy, because the encoders' outputs are overwritten at their next call.
        return PromptEmbedding(prompt_context(self._pipe.unet, tokens), pooled.clone())

    def _ids(self, prompt: str) -> Sequence[torch.Tensor]:
        return [
            to_device(
                tokenizer(
                    prompt,
                    padding="max_length",
                    max_length=tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                ).input_ids,
                self._device,
            )
            for tokenizer in self._tokenizers
        ]


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
        encoded = self._tokenizer(
            prompt, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True
        )
        offsets: list[tuple[int, int]] = encoded.offset_mapping
        return prompt[offsets[self.room][0] :].strip() if len(offsets) > self.room else ""
