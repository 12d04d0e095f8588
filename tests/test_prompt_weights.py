"""Weights in prompts: how A1111's parser reads them, and what they do to the embeddings (its "No norm")."""

import re
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.prompt_weights import weighted
from serve_app.recipe import Recipe
from serve_app.replica.attention import prompt_context
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder

UP, DOWN = 1.1, 1 / 1.1
Pieces = list[tuple[str, float]]

# The first six are the examples that A1111's parser documents.
READ: dict[str, list[Pieces]] = {
    "normal text": [[("normal text", 1)]],
    "an (important) word": [[("an ", 1), ("important", UP), (" word", 1)]],
    "(unbalanced": [[("unbalanced", UP)]],
    r"\(literal\]": [[("(literal]", 1)]],
    "(unnecessary)(parens)": [[("unnecessaryparens", UP)]],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        [
            ("a ", 1), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55),
            (", sun, ", 1.1), ("sky", 1.4641000000000006), (".", 1.1),
        ]
    ],
    "a (red:1.3) cat": [[("a ", 1), ("red", 1.3), (" cat", 1)]],
    "a ( red : .5 ) cat": [[("a ", 1), (" red ", 0.5), (" cat", 1)]],
    "a (red:-1) cat": [[("a ", 1), ("red", -1), (" cat", 1)]],
    "a [red] cat": [[("a ", 1), ("red", DOWN), (" cat", 1)]],
    "a [[red]] cat": [[("a ", 1), ("red", DOWN * DOWN), (" cat", 1)]],
    "a (red [cat:2)": [[("a ", 1), ("red ", 2), ("cat", 2 * DOWN)]],
    "a cat :) b]": [[("a cat :) b]", 1)]],
    "the time is 10:30": [[("the time is 10:30", 1)]],
    "(at 10:30)": [[("at 10", 30)]],
    "a:1.3) cat": [[("a:1.3) cat", 1)]],
    r"a \\ cat \ dog": [[("a \\ cat  dog", 1)]],
    "a cat BREAK a (dog:1.2)": [[("a cat", 1)], [("a ", 1), ("dog", 1.2)]],
    "a cat\nBREAK\nBREAK b BREAK": [[("a cat", 1)], [], [("b", 1)]],
    "BREAKS and a BREAKDANCE": [[("BREAKS and a BREAKDANCE", 1)]],
    "(a BREAK b:1.5) c": [[("a", 1.5)], [("b", 1.5), (" c", 1)]],
}  # fmt: skip


@pytest.mark.parametrize(("prompt", "parts"), READ.items())
def test_prompts_are_read_as_a1111_reads_them(prompt: str, parts: list[Pieces]) -> None:
    read = [[(piece.text, piece.weight) for piece in part] for part in weighted(prompt)]
    assert [[text for text, _ in part] for part in read] == [[text for text, _ in part] for part in parts]
    for part, expected in zip(read, parts, strict=True):
        assert [weight for _, weight in part] == pytest.approx([weight for _, weight in expected], rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab ()[]:\\.1-\nBREAK"), max_size=60))
def test_any_text_is_a_prompt_and_escaped_it_is_read_as_it_is(text: str) -> None:
    weighted(text)
    words = text.replace("BREAK", "break")
    escaped = re.sub(r"([\\()\[\]])", r"\\\1", words)
    assert [[(piece.text, piece.weight) for piece in part] for part in weighted(escaped)] == [
        [(words, 1.0)] if words else []
    ]


@pytest.mark.parametrize("prompt", READ)
@torch.inference_mode()
def test_embeddings_are_those_of_a1111(prompt: str, checkpoint: Checkpoint) -> None:
    """Each token's vector, of both encoders, times its weight; the pooled embedding as without weights."""
    pipe = checkpoint.pipe
    tokens = PromptReader(pipe).read(Recipe(prompt=prompt, prompt_syntax="weighted", guidance_scale=0)).rows[0]
    ours = PromptEncoder(pipe, checkpoint.device, 4).encode(tokens)
    contexts, pooled = [], []
    for part in READ[prompt]:
        by_encoder = []
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            pieces = [(tokenizer(text, add_special_tokens=False).input_ids, weight) for text, weight in part]
            ids = [id for own, _ in pieces for id in own]
            weights = [weight for own, weight in pieces for _ in own]
            filling = [tokenizer.pad_token_id] * (75 - len(ids))
            made = encoder(
                torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *filling]]),
                output_hidden_states=True,
            )
            factors = torch.tensor([1.0, *weights, *[1.0] * (76 - len(ids))])
            by_encoder.append(made.hidden_states[-2] * factors[None, :, None])
        contexts.append(prompt_context(checkpoint.unet, torch.cat(by_encoder, dim=-1)))
        pooled.append(made.text_embeds)
    assert ours.context is not None
    torch.testing.assert_close(ours.context, torch.cat(contexts, dim=1), rtol=1e-6, atol=1e-6)
    assert torch.equal(ours.pooled, pooled[0])


def test_plain_prompts_and_weights_of_one_are_the_same_tokens(checkpoint: Checkpoint) -> None:
    reader = PromptReader(checkpoint.pipe)
    plain = reader.read(Recipe(prompt="a cat"))
    even = reader.read(Recipe(prompt="a (cat:1)", prompt_syntax="weighted"))
    assert even == plain
    (_, row) = reader.read(Recipe(prompt="a (cat:1.5)")).rows
    assert all(own.weights is None for chunk in row.chunks for own in chunk), "they are words"


def test_what_is_not_read_of_a_prompt_in_parts_is_named(checkpoint: Checkpoint) -> None:
    recipe = Recipe(prompt="(a:1.2)bc BREAK (de:1.1)f BREAK g", prompt_syntax="weighted")
    (warning,) = PromptReader(checkpoint.pipe).read(recipe, 75).warnings
    assert warning.endswith("it does not see: def g")
    recipe = Recipe(prompt=f"(ab:1.2){'c' * 80}", prompt_syntax="weighted")
    (warning,) = PromptReader(checkpoint.pipe).read(recipe, 75).warnings
    assert warning.endswith(f"it does not see: {'c' * 7}")


@pytest.mark.parametrize("piece", [" ", "\n", ": ", "\\ ", "BREAK "])
def test_no_text_takes_long(piece: str) -> None:
    started = time.perf_counter()
    weighted(piece * 20_000)
    assert time.perf_counter() - started < 1
