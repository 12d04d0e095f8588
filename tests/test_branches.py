from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.branches import branched
from serve_app.recipe import Phase, Recipe
from serve_app.schemas import GenerateRequest

PLAIN = Recipe(prompt="a cat", prompt_2="grey", negative_prompt="dull")
CHAIN = Recipe.of(PLAIN.model_copy(update={"before": (Phase(until_step=4, prompt="a dog"), Phase(until_step=8))}))


def at_steps(recipe: Recipe) -> list[Recipe]:
    """Return the recipe of each step."""
    return [recipe.phases[recipe.phase_after(step)] for step in range(recipe.num_inference_steps)]


@pytest.mark.parametrize("recipe", [PLAIN, CHAIN])
@pytest.mark.parametrize("step", [0, 1, 4, 6, 8, 12])
@pytest.mark.parametrize(
    "changes", [{}, {"prompt": "a fox", "negative_prompt_2": "blue"}, {"prompt": "a dog", "prompt_2": None}]
)
def test_a_branch_follows_the_recipe_up_to_the_step_and_then_the_changes(
    recipe: Recipe, step: int, changes: dict[str, Any]
) -> None:
    branch = branched(recipe, step, changes)
    after = recipe.model_copy(update={**changes, "before": ()})
    expected = [*at_steps(recipe)[:step], *[after] * (20 - step)]

    def read(recipe: Recipe) -> dict[str, Any]:
        second = {name: getattr(recipe, name) or None for name in ("prompt_2", "negative_prompt_2")}
        return recipe.model_dump() | second  # none and an empty one mean the first

    assert [read(own) for own in at_steps(branch)] == [read(own) for own in expected]
    assert GenerateRequest(**dict(branch)).before == branch.before, "and can be asked for"


def test_settings_that_differ_alone_are_written() -> None:
    branch = branched(CHAIN, 6, {"prompt": "a fox", "prompt_2": None, "guidance_scale": 5.0})
    assert [(phase.until_step, phase.settings) for phase in branch.before] == [
        (4, {"prompt": "a dog", "prompt_2": "grey"}),
        (6, {"prompt": "a cat", "prompt_2": "grey"}),
    ]


def test_what_a_picture_leaves_out_is_no_phase() -> None:
    went_on = CHAIN.model_copy(update={"init_image": "sha256:0", "strength": 0.7})  # begins after step 6
    assert branched(went_on, 6, {"prompt": "a fox"}).before == ()
    assert branched(went_on, 9, {"prompt": "a fox"}).before == (
        Phase(until_step=8, prompt="a cat"),
        Phase(until_step=9, prompt="a cat"),
    )


def test_what_cannot_be_a_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="scheduler, width: only prompt, "):
        branched(PLAIN, 4, {"width": 64, "scheduler": "ddim"})
    with pytest.raises(ValueError, match="step 20"):
        branched(PLAIN, 20, {"prompt": "a fox"})
    with pytest.raises(ValidationError, match="guidance_scale"):
        branched(PLAIN, 4, {"guidance_scale": 31.0})
    longest = PLAIN
    for step in range(1, 5):
        longest = branched(longest, step, {"prompt": f"{step}"})
    with pytest.raises(ValueError, match="may change 4 times"):
        branched(longest, 5, {"prompt": "a fox"})


@pytest.mark.parametrize("ends", [(20,), (4, 4), (6, 4)])
def test_phases_of_a_request_follow_each_other(ends: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="until_step"):
        GenerateRequest(prompt="a", before=tuple(Phase(until_step=end) for end in ends))
