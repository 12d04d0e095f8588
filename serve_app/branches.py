"""Branches: a picture is left at a step for other prompts, and can be made again from its recipe alone."""

from collections.abc import Mapping
from typing import Any

from serve_app.recipe import MOST_PHASES, OF_PHASES, Phase, Recipe


def branched(recipe: Recipe, step: int, changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe that follows another for the first `step` steps of the schedule, then goes on with `changes`.

    These are settings of a phase (`recipe.OF_PHASES`). A branch has branches too: it keeps its phases up to the step.
    Raises ValueError for other settings, a step that is not below the last and too many phases, ValidationError beyond
    the bounds.
    """
    if not step < recipe.num_inference_steps:
        raise ValueError(f"step {step}: nothing is left of {recipe.num_inference_steps} steps to go another way")
    if others := changes.keys() - {*OF_PHASES}:
        raise ValueError(f"{', '.join(sorted(others))}: only {', '.join(OF_PHASES)} may change between two steps")
    after = recipe.model_copy(update={**changes, "before": ()})
    before: list[Phase] = []
    ends = (*(phase.until_step for phase in recipe.before), recipe.num_inference_steps)
    for phase, end in zip(recipe.phases, ends, strict=True):
        begun, ended = before[-1].until_step if before else recipe.first_step, min(end, step)
        if begun < ended:
            before.append(Phase(until_step=ended, **_differing(phase, after)))
    if len(before) > MOST_PHASES:
        raise ValueError(f"before: a picture may change {MOST_PHASES} times on its way, and this one has")
    return Recipe.of(after.model_copy(update={"before": tuple(before)}))


def _differing(phase: Recipe, after: Recipe) -> dict[str, Any]:
    """Return the settings of a phase that are not those of what comes after it. What is null there is empty here."""
    return {
        name: "" if value is None else value
        for name in OF_PHASES
        if (value := getattr(phase, name)) != getattr(after, name)
    }
