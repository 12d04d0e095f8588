import time

import pytest

from serve_app.fanout.prompt_syntax import found_in, syntax_warning
from serve_app.recipe import LONGEST_TEXT, PromptSyntax


@pytest.mark.parametrize(
    "syntax",
    [
        "(red:1.4)", "(red apple: 1.4 )", "(red:.5)", "(red:-1)", "(red:2)", "(16:1.3)", "((red))",
        "(((a red, apple)))", "(red)1.4", "(red)++", "(embedding:name:1.2)", "[x]", "[a red apple]", "[x|y]",
        "[a:b:10]", "[a:10]", "[:a:0.5]", "<lora:name:0.8>", "<lyco:my name:1>", "<hypernet:name>",
        "{red|blue}", "__colours__", "BREAK", "ADDCOL",
        "(f(x):1.2)", "(a (red) and (blue) cat: 1.2)", "(red (apple):2)",
    ],
)  # fmt: skip
def test_what_other_tools_act_on_is_found(syntax: str) -> None:
    assert found_in(syntax) == [syntax]
    assert found_in(f"a cat, {syntax}, a dog (aside)") == [syntax]
    assert found_in(f"a cat\n{syntax}\na dog") == [syntax]


@pytest.mark.parametrize(
    "words",
    [
        "(like this)", "(see (this))", "a (red) (apple)", "f(x)", "(1990)-style", "(a)-(b)", "(C++)", "[1]",
        "[2020-2021]", "[]", "()", "(())", "((1))", ":)", ":(", ":] [:", "a :) b (:", "(hello :)", "(so cute :3)",
        "<3", "a <b> c", "<https://a.b/c>", "(16:9)", "(at 10:30)", "1:1.5", "embedding: a story", "embeddings", "{x}",
        "embedding:name", "EMBEDDING:a/b.safetensors",
        "(see (16:9))", "(f(x))", "(at (10:30))",
        "a__b", "____", "_x_", "break the ice", "CATS AND DOGS", r"\(red:1.4\)", r"\[x\]", r"\(\(x\)\)", r"\<lora:x:1>",
        r"(red:1.4\)", "",
    ],
)  # fmt: skip
def test_words_are_words(words: str) -> None:
    assert found_in(words) == []
    assert syntax_warning("prompt", words) is None


@pytest.mark.parametrize("piece", ["(", "(a", "(a)", "(a(b)", "((a)b", "(a:1", "(a(b):", "((("])
def test_no_prompt_takes_long(piece: str) -> None:
    started = time.perf_counter()
    found_in(piece * (LONGEST_TEXT // len(piece)))
    assert time.perf_counter() - started < 1


def test_prompts_joined_by_and_are_found() -> None:
    assert found_in("a cat AND a dog") == ["AND"]


def test_each_is_found_once_in_the_order_of_the_prompt() -> None:
    assert found_in("[b] (a:1.1) [b]") == ["[b]", "(a:1.1)"]
    assert found_in(r"an \\(escaped backslash:1.1)") == ["(escaped backslash:1.1)"]


def test_the_warning_names_the_field_and_some_of_it() -> None:
    said = syntax_warning("negative_prompt", f"({'x' * 2000}:1.4), [a], BREAK, <lora:b:1>, [c]")
    assert said
    assert said.startswith(f"negative_prompt: read as plain words: ({'x' * 36}..., [a], BREAK and 2 more; weights,")


@pytest.mark.parametrize("syntax", ["plain", "weighted"])
def test_the_warning_about_a_lora_says_where_to_name_it(syntax: PromptSyntax) -> None:
    assert str(syntax_warning("prompt", "a cat <lora:ink:0.8>", syntax)).endswith("; the field loras names LoRAs")
    assert "loras" not in str(syntax_warning("prompt", "a {cat|dog}", syntax))
