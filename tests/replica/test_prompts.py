import sys
import threading

import pytest
import torch

from serve_app.recipe import Recipe
from serve_app.replica.attention import prompt_context
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.prompts import PromptEncoder, PromptReader


@pytest.fixture
def encoder(checkpoint: Checkpoint) -> PromptEncoder:
    return PromptEncoder(checkpoint.pipe, checkpoint.device, cache_size=2)


@pytest.mark.parametrize("prompt", ["", "a red apple", "word " * 40])
def test_an_embedding_is_the_stock_pipelines(encoder: PromptEncoder, checkpoint: Checkpoint, prompt: str) -> None:
    with torch.inference_mode():
        tokens, _, pooled, _ = checkpoint.pipe.encode_prompt(
            prompt, device=checkpoint.device, do_classifier_free_guidance=False
        )
        embedding = encoder.encode(prompt)
        assert torch.equal(embedding.context, prompt_context(checkpoint.unet, tokens))
        assert torch.equal(embedding.pooled, pooled)


def test_an_empty_negative_prompt_is_zeros_where_the_checkpoint_says_so(encoder: PromptEncoder) -> None:
    negative = encoder.encode_negative("")
    assert not negative.context.any()
    assert not negative.pooled.any()
    assert encoder.encode_negative("dull").context.any()


def test_an_empty_negative_prompt_is_encoded_where_it_does_not(encoder: PromptEncoder, checkpoint: Checkpoint) -> None:
    checkpoint.pipe.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        assert torch.equal(encoder.encode_negative("").context, encoder.encode("").context)
        assert encoder.encode_negative("").context.any()
    finally:
        checkpoint.pipe.register_to_config(force_zeros_for_empty_prompt=True)


def test_the_cache_forgets_the_prompt_unused_for_longest(encoder: PromptEncoder) -> None:
    apple = encoder.encode("apple")
    pear = encoder.encode("pear")
    assert encoder.encode("apple") is apple
    encoder.encode("fig")
    assert encoder.encode("apple") is apple
    assert encoder.encode("pear") is not pear


@pytest.mark.parametrize(
    ("prompt", "unseen"),
    [
        ("", ""),
        ("a" * 75, ""),
        ("a" * 76, "a"),
        ("word " * 18 + "end", ""),
        ("Word " * 18 + "ends Word 苹果", "s Word 苹果"),
    ],
)
def test_the_cut_off_part_of_a_prompt_is_returned(checkpoint: Checkpoint, prompt: str, unseen: str) -> None:
    # The tiny vocabulary has a token for each letter.
    assert PromptReader(checkpoint.pipe).cut_off(prompt) == unseen


def test_each_text_that_is_not_read_to_its_end_is_a_warning(checkpoint: Checkpoint) -> None:
    recipe = Recipe(prompt="a" * 75 + " cat", negative_prompt="b" * 75 + " dog")
    assert PromptReader(checkpoint.pipe).warnings(recipe) == (
        "prompt is longer than the model can read; it does not see: cat",
        "negative_prompt is longer than the model can read; it does not see: dog",
    )
    assert PromptReader(checkpoint.pipe).warnings(Recipe(prompt="a cat")) == ()


def test_reading_a_prompt_does_not_disturb_encoding_on_another_thread(checkpoint: Checkpoint) -> None:
    """A tokenizer shared by two threads fails within a few hundred of these calls."""
    reader, stop, faults = PromptReader(checkpoint.pipe), threading.Event(), []
    prompt = "x" * 80

    def read() -> None:
        while not stop.is_set():
            try:
                if reader.cut_off(prompt) != "x" * 5:
                    faults.append("reader: another end")
            except Exception as error:
                faults.append(f"reader: {error}")

    thread = threading.Thread(target=read)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(2000):
            tokens = checkpoint.pipe.tokenizer_2(prompt, padding="max_length", max_length=77, truncation=True).input_ids
            if len(tokens) != 77:
                faults.append(f"encoder: {len(tokens)} tokens")
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
    assert faults == []
