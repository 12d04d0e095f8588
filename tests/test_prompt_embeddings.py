"""How prompts name embeddings."""

import pytest

from serve_app.prompt_embeddings import can_be_named, names_in, spelled_out, split, words_in


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a cat, embedding:easy-neg", ["easy-neg"]),
        ("(embedding:easy:1.2), EMBEDDING:styles/ink.", ["easy", "styles/ink"]),
        ("embedding:one.safetensors embedding:one", ["one"]),
        ("embedding:one.SAFETENSORS", ["one"]),
        ("embedding:v1.5, end", ["v1.5"]),
        ("my embedding: a cat", []),
        ("subembedding:x", []),
    ],
)
def test_names_in_prompts(text: str, names: list[str]) -> None:
    assert names_in([text, None]) == names
    assert "".join(words for _, words in split(text)) == text


def test_bare_names_are_spelled_out_as_whole_words_only() -> None:
    names = ["neg", "neg-xl", "styles/ink"]
    assert spelled_out("NEG, neg-xl negative, styles/ink, embedding:neg", names) == (
        "embedding:neg, embedding:neg-xl negative, embedding:styles/ink, embedding:neg"
    )
    assert spelled_out("neg", []) == "neg"


@pytest.mark.parametrize(
    ("name", "can"), [("bad(1)", False), ("my style", False), ("v1-", False), ("v1-a", True), ("styles/v1.5", True)]
)
def test_some_names_would_be_read_as_another(name: str, can: bool) -> None:
    assert can_be_named(name) == can


def test_only_whole_words_may_be_bare_names() -> None:
    assert words_in("(Neg:1.2), styles/Ink. v1.5", "a-, b.c-, x") == {"neg", "styles/ink", "v1.5", "x"}


def test_of_names_that_differ_in_case_the_exact_one_counts() -> None:
    assert spelled_out("Neg, neg, NEG", ["neg", "Neg"]) == "embedding:Neg, embedding:neg, embedding:neg"
