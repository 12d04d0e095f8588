"""Encodes prompts with the pipeline's text encoders and caches the embeddings."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from serve_app.replica.attention import prompt_context
from serve_app.replica.compilation import Eager, Forward
from serve_app.replica.cuda_graphs import with_cuda_graphs
from serve_app.replica.device import to_device
from serve_app.replica.embeddings import Vectors, inserted
from serve_app.replica.lora.merging import Layers
from serve_app.replica.lora.sets import TEXT_ENCODERS, Adapters, WeightSet
from serve_app.replica.prompt_reader import Chunk, PromptTokens, ReadPrompts


@dataclass(frozen=True, slots=True)
class PromptEmbedding:
    """A prompt as the UNet takes it, in the text encoders' dtype.

    `context` is (1, 77 for each chunk, width of `attention.prompt_context`), `pooled` (1, projection width). None means
    that the context is zeros.
    """

    context: torch.Tensor | None
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
    """Encodes one chunk of a prompt at a time, so that an embedding never depends on what else is being generated."""

    def __init__(self, pipe: StableDiffusionXLPipeline, device: torch.device, cache_size: int) -> None:
        """`cache_size` counts chunks."""
        self._pipe = pipe
        self._own = WeightSet(pipe.unet)
        encoders = {name: getattr(pipe, name) for name in TEXT_ENCODERS}
        self._layers = {name: Layers(encoder) for name, encoder in encoders.items() if encoder is not None}
        self._widths = [encoder.config.hidden_size for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
        self._device = device
        last = pipe.text_encoder_2
        self._zeros = torch.zeros(1, last.config.projection_dim, dtype=last.dtype, device=device)
        self._eager = TextEncoders(pipe, device)
        self._encoders = with_cuda_graphs(self._eager, device)
        self._contexts: WeakKeyDictionary[UNet2DConditionModel, Forward[torch.Tensor]] = WeakKeyDictionary()
        self._cache_size = cache_size
        self._cache: OrderedDict[tuple[PromptTokens, Hashable], PromptEmbedding] = OrderedDict()

    def conditions(self, prompts: ReadPrompts, weights: WeightSet | None = None) -> Sequence[PromptEmbedding]:
        """Return the embeddings of a recipe's prompts, in their order, cached if possible.

        `weights` are those of its adapters; None: the model's own.
        """
        return self._embeddings(prompts.rows, weights, prompts.vectors)

    def encode(
        self, prompt: PromptTokens, weights: WeightSet | None = None, vectors: Mapping[str, Vectors] | None = None
    ) -> PromptEmbedding:
        """Return the embedding of a prompt, cached if possible. `vectors` are those that it inserts, by hash."""
        return self._embeddings([prompt], weights, vectors or {})[0]

    def _embeddings(
        self, prompts: Sequence[PromptTokens], weights: WeightSet | None, vectors: Mapping[str, Vectors]
    ) -> Sequence[PromptEmbedding]:
        weights = weights or self._own
        found = {prompt: self._known(prompt, weights) for prompt in prompts}
        if new := [prompt for prompt, embedding in found.items() if embedding is None]:
            with self._changed(weights.adapters):  # once for all of them: it takes longer than to encode one
                made = {prompt: self._encode(prompt, weights, vectors) for prompt in new}
            for prompt in made:
                self._keep(prompt, weights, made[prompt])
            found |= made
        return [embedding for prompt in prompts if (embedding := found[prompt])]

    def _known(self, prompt: PromptTokens, weights: WeightSet) -> PromptEmbedding | None:
        if prompt.zeros:
            return PromptEmbedding(None, self._zeros)
        if (key := (prompt, weights.adapters.key)) in self._cache:
            self._cache.move_to_end(key)
        return self._cache.get(key)

    def _keep(self, prompt: PromptTokens, weights: WeightSet, embedding: PromptEmbedding) -> None:
        self._cache[prompt, weights.adapters.key] = embedding
        while len(self._cache) > 1 and sum(len(cached.chunks) for cached, _ in self._cache) > self._cache_size:
            self._cache.popitem(last=False)

    @contextmanager
    def _changed(self, adapters: Adapters) -> Iterator[None]:
        """Change the text encoders for a while, as adapters do."""
        with ExitStack() as stack:
            for name, layers in self._layers.items():
                stack.enter_context(layers.merged(layers.changes(adapters.of(name))))
            yield

    def warm_up(self, prompts: ReadPrompts, unets: Sequence[UNet2DConditionModel]) -> None:
        """Capture the CUDA graphs of the text encoders and of each UNet's context on a GPU; on a CPU, run all."""
        ids = self._ids(prompts.rows[0].chunks[0])
        self._encoders.warm_up(*ids)
        for unet in unets:
            self._context_of(unet).warm_up(self._encoders(*ids)[0])

    def _encode(self, prompt: PromptTokens, weights: WeightSet, vectors: Mapping[str, Vectors]) -> PromptEmbedding:
        chunks = [self._encode_chunk(chunk, weights, vectors) for chunk in prompt.chunks]
        contexts, pooled = zip(*chunks, strict=True)
        return PromptEmbedding(contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=1), pooled[0])

    def _encode_chunk(
        self, chunk: Sequence[Chunk], weights: WeightSet, vectors: Mapping[str, Vectors]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if any(own.insertions for own in chunk):
            with inserted(self._pipe, [own.insertions for own in chunk], vectors):
                tokens, pooled = self._eager(*self._ids(chunk))  # CUDA graphs call no hooks
        else:
            tokens, pooled = self._encoders(*self._ids(chunk))
        if any(own.weights for own in chunk):
            tokens = (tokens.float() * self._factors(chunk)).to(tokens.dtype)
        # Copies, because the next calls overwrite both.
        return self._context_of(weights.unet)(tokens).clone(), pooled.clone()

    def _context_of(self, unet: UNet2DConditionModel) -> Forward[torch.Tensor]:
        """Return the forward of a UNet's context: 140 products, whose launches take longer than they do."""
        if unet not in self._contexts:
            self._contexts[unet] = with_cuda_graphs(Eager(prompt_context, unet), self._device)
        return self._contexts[unet]

    def _factors(self, chunk: Sequence[Chunk]) -> torch.Tensor:
        """Return the weights of a chunk's tokens, for the values that each encoder gives them."""
        weights = (torch.tensor(own.weights or [1.0] * len(own.ids)) for own in chunk)
        rows = [own[None, :, None].expand(-1, -1, width) for own, width in zip(weights, self._widths, strict=True)]
        return to_device(torch.cat(rows, dim=-1), self._device)

    def _ids(self, chunk: Sequence[Chunk]) -> Sequence[torch.Tensor]:
        return [to_device(torch.tensor([own.ids]), self._device) for own in chunk]
