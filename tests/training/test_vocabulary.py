from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from training.vocabulary import END, START, CaptionEncoder, learn_merges, load_tokenizer, save_vocabulary

WORDS = ["apple", "red", "a", "happy", "cat", "background", "on"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder: Path = tmp_path_factory.mktemp("vocabulary")
    save_vocabulary(WORDS, folder)
    return load_tokenizer(folder, max_length=12)


def test_learn_merges_is_deterministic() -> None:
    assert learn_merges(WORDS) == learn_merges(WORDS[::-1])


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_one_token(tokenizer: CLIPTokenizer, word: str) -> None:
    assert tokenizer.tokenize(word) == [f"{word}</w>"]


def test_any_text_has_tokens_of_its_own(tokenizer: CLIPTokenizer) -> None:
    for text in ("zyxq", "Äpfel", "猫", "4k!"):
        pieces = tokenizer.tokenize(text)
        assert pieces
        assert END not in pieces


def test_markers_end_the_vocabulary(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids([START, END]) == [len(tokenizer) - 2, len(tokenizer) - 1]


@pytest.mark.parametrize("text", ["a red apple", "happy cat , on red background", "a zyxq cat", "cat " * 20, ""])
def test_the_fast_encoder_agrees_with_the_tokenizer(tokenizer: CLIPTokenizer, text: str) -> None:
    expected = tokenizer(text, padding="max_length", truncation=True)["input_ids"]
    assert CaptionEncoder(tokenizer).encode(text) == expected
