"""Encodes prompts with the pipeline's text encoders and caches the embeddings."""

import copy
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline

from serve_app.recipe import Recipe
from serve_app.replica.attention import prompt_context
from serve_app.replica.cuda_graphs import with_cuda_graphs
from serve_app.replica.device import to_device
from serve_app.replica.lora.sets import WeightSet

_LONGEST_LOWER_CASE = 1.5
"""By how much lower-casing, which CLIP's tokenizers do first, can lengthen a text in bytes."""


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """A prompt as the UNet takes it, in the text encoders' dtype.

    `context` is (1, sequence length, width of `attention.prompt_context`), `pooled` (1, projection width).
    """

    context: torch.Tensor
    pooled: torch.Tensor


class TextEncoders:
    """A pipeline's text encoders as one forward.

    Takes token ids (1, length) for each of them, returns tokens (1, length, width) and pooled (1, projection width).
    """

    def __init__(self, pipe: StableDiffusionXLPipeline, device: torch.device) -> None:
        self._encoders = [encoder for encoder in (pipe.text_encoder, pipe.text_encoder_2) if encoder is not None]
        # Without a mask, transformers creates one only during capture; with one, it always runs the same kernels.
        length = pipe.tokenizer_2.model_max_length
        self._mask = (
            None if device.type == "cpu" else torch.ones(1, 1, length, length, dtype=torch.bool, device=device).tril()
        )

    def __call__(self, *ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = [
            encoder(own, attention_mask=self._mask, output_hidden_states=True)
            for encoder, own in zip(self._encoders, ids, strict=True)
        ]
        # SDXL was trained on the second to last layer of each encoder, and on the pooled output of the last encoder.
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds

    def warm_up(self, *ids: torch.Tensor) -> None:
        pass


class PromptEncoder:
    """Encodes one prompt at a time, so that an embedding never depends on what else is being generated."""

    def __init__(self, pipe: StableDiffusionXLPipeline, device: torch.device, cache_size: int) -> None:
        self._pipe = pipe
        self._device = device
        self._tokenizers = [tokenizer for tokenizer in (pipe.tokenizer, pipe.tokenizer_2) if tokenizer is not None]
        self._encoders = with_cuda_graphs(TextEncoders(pipe, device), device)
        self._cache_size = cache_size
        self._own = WeightSet(pipe.unet)
        self._cache: OrderedDict[tuple[str | None, Hashable], PromptEmbedding] = OrderedDict()

    def conditions(self, recipe: Recipe, weights: WeightSet | None = None) -> Sequence[PromptEmbedding]:
        """Return a recipe's embeddings: the prompt's, preceded by the unconditional one if there is guidance.

        `weights` are those of its adapters; None: the model's own.
        """
        prompt = self.encode(recipe.prompt, weights)
        return [self.encode_negative(recipe.negative_prompt, weights), prompt] if recipe.guided else [prompt]

    def encode(self, prompt: str, weights: WeightSet | None = None) -> PromptEmbedding:
        """Return the embedding of a prompt, cached if possible."""
        return self._cached(prompt, weights or self._own)

    def encode_negative(self, negative_prompt: str, weights: WeightSet | None = None) -> PromptEmbedding:
        """Return the unconditional embedding. For an empty prompt it is all zeros if the checkpoint says so."""
        zeros = not negative_prompt and self._pipe.config.force_zeros_for_empty_prompt
        return self._cached(None if zeros else negative_prompt, weights or self._own)

    def warm_up(self) -> None:
        """Capture the text encoders' CUDA graph on a GPU; on a CPU, run them once."""
        self._encoders.warm_up(*self._ids(""))

    def _cached(self, prompt: str | None, weights: WeightSet) -> PromptEmbedding:
        key = prompt, weights.adapters.key
        if key not in self._cache:
            self._cache[key] = self._encode(prompt, weights)
            if len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _encode(self, prompt: str | None, weights: WeightSet) -> PromptEmbedding:
        with weights.text_encoders(self._pipe):
            tokens, pooled = self._encoders(*self._ids(prompt or ""))
        if prompt is None:
            tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
        # Copy, because the next call overwrites the encoders' outputs.
        return PromptEmbedding(prompt_context(weights.unet, tokens), pooled.clone())

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
    """Finds the part of a prompt that the text encoders do not see.

    It has its own tokenizer: truncation and padding are state of a tokenizer, and another thread uses the engine's.
    """

    def __init__(self, pipe: StableDiffusionXLPipeline) -> None:
        self._tokenizer = copy.deepcopy(pipe.tokenizer_2)
        self._room: int = pipe.tokenizer_2.model_max_length - 2  # without the start and end tokens

    def warnings(self, recipe: Recipe) -> tuple[str, ...]:
        """Return a sentence for each text of a recipe that is longer than the text encoders read."""
        ends = {"prompt": self.cut_off(recipe.prompt), "negative_prompt": self.cut_off(recipe.negative_prompt)}
        return tuple(
            f"{name} is longer than the model can read; it does not see: {end}" for name, end in ends.items() if end
        )

    def cut_off(self, prompt: str) -> str:
        """Return the end of a prompt that the text encoders do not see; empty if they see all of it."""
        if len(prompt.encode()) * _LONGEST_LOWER_CASE <= self._room:
            return ""  # a token has at least a byte
        encoded = self._tokenizer(
            prompt, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True
        )
        offsets: list[tuple[int, int]] = encoded.offset_mapping
        return prompt[offsets[self._room][0] :].strip() if len(offsets) > self._room else ""
