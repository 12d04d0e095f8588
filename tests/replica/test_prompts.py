import pytest
import torch

from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.prompts import PromptEncoder, cut_off


@pytest.fixture
def encoder(checkpoint: Checkpoint) -> PromptEncoder:
    return PromptEncoder(checkpoint.pipe, checkpoint.device, cache_size=2)


def test_an_empty_negative_prompt_is_zeros_where_the_checkpoint_says_so(encoder: PromptEncoder) -> None:
    negative = encoder.encode_negative("")
    assert not negative.tokens.any()
    assert not negative.pooled.any()
    assert encoder.encode_negative("dull").tokens.any()


def test_an_empty_negative_prompt_is_encoded_where_it_does_not(encoder: PromptEncoder, checkpoint: Checkpoint) -> None:
    checkpoint.pipe.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        assert torch.equal(encoder.encode_negative("").tokens, encoder.encode("").tokens)
        assert encoder.encode_negative("").tokens.any()
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
    ("prompt", "unseen"), [("", ""), ("a" * 75, ""), ("a" * 76, "a"), ("word " * 18 + "end", ""), ("word " * 18 + "ends word", "s word")]
)
def test_says_what_the_model_does_not_see(checkpoint: Checkpoint, prompt: str, unseen: str) -> None:
    # The tiny vocabulary has a token for each letter.
    assert cut_off(checkpoint.pipe, prompt) == unseen
