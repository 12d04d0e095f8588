import pytest
import torch

from serve_app.recipe import Recipe
from serve_app.replica.attention import prompt_context
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.prompt_reader import PromptReader, PromptTokens
from serve_app.replica.prompts import PromptEmbedding, PromptEncoder


@pytest.fixture
def encoder(checkpoint: Checkpoint) -> PromptEncoder:
    return PromptEncoder(checkpoint.pipe, checkpoint.device, cache_size=2)


@pytest.fixture(scope="module")
def reader(checkpoint: Checkpoint) -> PromptReader:
    return PromptReader(checkpoint.pipe)


def tokens(reader: PromptReader, prompt: str) -> PromptTokens:
    return reader.read(Recipe(prompt=prompt, guidance_scale=0)).rows[0]


def stock(checkpoint: Checkpoint, prompt: str) -> PromptEmbedding:
    """Return what diffusers' pipeline makes of a prompt of one chunk."""
    embedded, _, pooled, _ = checkpoint.pipe.encode_prompt(
        prompt, device=checkpoint.device, do_classifier_free_guidance=False
    )
    return PromptEmbedding(prompt_context(checkpoint.unet, embedded), pooled)


def context(embedding: PromptEmbedding) -> torch.Tensor:
    assert embedding.context is not None
    return embedding.context


@pytest.mark.parametrize("prompt", [" ", "a red apple", "word " * 18])
@torch.inference_mode()
def test_an_embedding_is_the_stock_pipelines(
    encoder: PromptEncoder, reader: PromptReader, checkpoint: Checkpoint, prompt: str
) -> None:
    embedding, expected = encoder.encode(tokens(reader, prompt)), stock(checkpoint, prompt)
    assert torch.equal(context(embedding), context(expected))
    assert torch.equal(embedding.pooled, expected.pooled)


@torch.inference_mode()
def test_a_long_prompt_is_the_stock_pipelines_embeddings_of_its_parts(
    encoder: PromptEncoder, reader: PromptReader, checkpoint: Checkpoint
) -> None:
    first, second, third = "a" * 74 + " ", "word " * 18 + "abc", "the end"  # the tiny vocabulary has a token a letter
    embedding = encoder.encode(tokens(reader, f"{first}x {second} {third}"))
    parts = [stock(checkpoint, part) for part in (first + "x", second, third)]
    assert torch.equal(context(embedding), torch.cat([context(part) for part in parts], dim=1))
    assert torch.equal(embedding.pooled, parts[0].pooled)


@torch.inference_mode()
def test_a_shorter_negative_prompt_is_filled_with_empty_chunks(
    encoder: PromptEncoder, reader: PromptReader, checkpoint: Checkpoint
) -> None:
    negative, prompt = encoder.conditions(reader.read(Recipe(prompt="a" * 76, negative_prompt="dull")))
    parts = [stock(checkpoint, part) for part in ("dull", "")]
    assert context(negative).shape == context(prompt).shape
    assert torch.equal(context(negative), torch.cat([context(part) for part in parts], dim=1))
    assert torch.equal(negative.pooled, parts[0].pooled)


@pytest.mark.parametrize("prompt", ["a cat", "a" * 76])
def test_an_empty_negative_prompt_is_zeros_where_the_checkpoint_says_so(
    encoder: PromptEncoder, reader: PromptReader, prompt: str
) -> None:
    negative, prompted = encoder.conditions(reader.read(Recipe(prompt=prompt)))
    assert negative.context is None
    assert negative.pooled.shape == prompted.pooled.shape
    assert not negative.pooled.any()
    assert context(encoder.conditions(reader.read(Recipe(prompt=prompt, negative_prompt="dull")))[0]).any()


def test_an_empty_negative_prompt_is_encoded_where_it_does_not(
    encoder: PromptEncoder, reader: PromptReader, checkpoint: Checkpoint
) -> None:
    checkpoint.pipe.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        negative, _ = encoder.conditions(reader.read(Recipe(prompt="a cat")))
        assert torch.equal(context(negative), context(stock(checkpoint, "")))
    finally:
        checkpoint.pipe.register_to_config(force_zeros_for_empty_prompt=True)


def test_the_cache_forgets_the_prompt_unused_for_longest(encoder: PromptEncoder, reader: PromptReader) -> None:
    apple, pear, fig = (tokens(reader, prompt) for prompt in ("apple", "pear", "fig"))
    kept, lost = encoder.encode(apple), encoder.encode(pear)
    assert encoder.encode(apple) is kept
    encoder.encode(fig)
    assert encoder.encode(apple) is kept
    assert encoder.encode(pear) is not lost


def test_long_prompts_count_in_the_cache_as_often_as_they_have_chunks(
    encoder: PromptEncoder, reader: PromptReader
) -> None:
    apple, long = tokens(reader, "apple"), tokens(reader, "a" * 200)
    lost = encoder.encode(apple)
    kept = encoder.encode(long)
    assert encoder.encode(long) is kept, "the newest is always kept"
    assert encoder.encode(apple) is not lost
