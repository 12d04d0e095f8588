"""Prompts that A1111 edits on the way to a picture."""

import pytest
from starlette.testclient import TestClient

from tests.fakes import FakePool
from tests.ingress.test_a1111 import IMG2IMG, PHOTO, TXT2IMG, answer, refusal


@pytest.mark.parametrize(
    ("prompt", "phases"),
    [
        ("a [cat:red dog:3] here", [(4, "a cat here"), (None, "a red dog here")]),
        ("a [red:.5] cat", [(6, "a  cat"), (None, "a red cat")]),
        ("a [red::0.29] [cat:dog:5]", [(3, "a red cat"), (6, "a  cat"), (None, "a  dog")]),
        ("[red :0]cat [blue:0.05]", [(None, "red cat blue")]),
        ("[cat:dog:9]", [(None, "cat")]),
        ("[dog:3]", [(4, " "), (None, "dog")]),
        ("a[b:[c:d:2]:1]e", [(2, "abe"), (3, "ace"), (None, "ade")]),
        (r"[(dog:2):3] [unbalanced \[a:b:3]", [(None, r"[(dog:2):3] [unbalanced \[a:b:3]")]),
        (f"[a:b:{'9' * 1900}.5]", [(None, f"[a:b:{'9' * 1900}.5]")]),
    ],
)
def test_prompts_that_are_edited_on_the_way(
    prompt: str, phases: list[tuple[int | None, str]], client: TestClient, pool: FakePool
) -> None:
    """As A1111 reads them: `when` counts from 0, and the step after it is still made with what comes before."""
    answer(client, prompt=prompt, negative_prompt="dull", steps=10)
    recipe = pool.slots[0].recipe
    assert [*((phase.until_step, phase.prompt) for phase in recipe.before), (None, recipe.prompt)] == phases


def test_negative_prompts_are_edited_too_and_what_cannot_be_is_told(client: TestClient, pool: FakePool) -> None:
    _, info = answer(client, prompt="a [cat:dog:3]", negative_prompt="[dull:grey:5]", steps=10)
    (first, second), last = pool.slots[0].recipe.before, pool.slots[0].recipe
    told = [(phase.prompt, phase.negative_prompt) for phase in (first, second, last)]
    assert told == [("a cat", "dull"), ("a dog", "dull"), ("a dog", "grey")]
    assert "a dog\nNegative prompt: grey\nSteps: 10" in info["infotexts"][0]
    assert info["warnings"] == []
    for path, more in ((TXT2IMG, {"sampler_name": "Heun"}), (IMG2IMG, {"init_images": [PHOTO]})):
        _, info = answer(client, path, prompt="a [cat:dog:3]", steps=10, **more)
        assert (pool.slots[-1].recipe.before, "[cat:dog:3]" in info["warnings"][0]) == ((), True)
    many = " ".join(f"[a:b:{step}]" for step in range(1, 6))
    assert refusal(client, prompt=many, steps=10) == (
        "prompt",
        "prompt: it changes 5 times on the way; at most 4 can be",
    )
