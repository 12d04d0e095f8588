"""What is known of samplers without making them, and that the documentation says the same."""

import re
from pathlib import Path
from typing import get_args

import pytest

from serve_app.recipe import SchedulerName, SigmaSchedule
from serve_app.samplers import SAMPLERS, SCHEDULES, refusal, said_of

PAGE = (Path(__file__).parent.parent / "docs" / "http.md").read_text().split("## Samplers")[1].split("\n## ")[0]
MEANT_BY_CLASS = {"deis", "data_prediction", "dpmsolver++", False, 2}
"""Values of options that are the class's own: the table leaves them out."""


def table(head: str) -> list[list[str]]:
    """Return the rows of the table whose head begins with this, without marks of code."""
    rows = PAGE.split(head)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in row.split("|")[1:-1]] for row in rows]


def test_the_table_has_every_sampler_and_what_is_known_of_it() -> None:
    told = {}
    for name, said, made, schedules in table("| `scheduler` | popular UIs say"):
        told[name] = (said, made, {*SCHEDULES} if schedules == "all" else {*schedules.split(", ")} - {"none"})
    known = {}
    for name, sampler in SAMPLERS.items():
        options = {key: value for key, value in sampler.options.items() if value not in MEANT_BY_CLASS}
        made = ", ".join([sampler.made_by, *(f"{key}: {str(value).lower()}" for key, value in options.items())])
        known[name] = (sampler.said, made, {*sampler.schedules})
    assert told == known
    assert {*known} == {*get_args(SchedulerName)}
    assert {*SCHEDULES} == {*get_args(SigmaSchedule)}


def test_the_advice_for_few_steps_is_none_that_is_refused() -> None:
    rows = table("| LoRA | `scheduler`")
    assert len(rows) == 5
    for _, scheduler, schedule, steps, _ in rows:
        for count in map(int, re.findall(r"\d+", steps)):
            assert refusal(scheduler, None if schedule == "none" else schedule, count) is None  # type: ignore[arg-type]


def test_no_two_samplers_have_one_name_in_popular_uis() -> None:
    names = [name.lower() for sampler in SAMPLERS.values() for name in (sampler.said, *sampler.aliases)]
    assert len(names) == len({*names})


@pytest.mark.parametrize(
    ("scheduler", "schedule", "steps", "field", "words"),
    [
        ("ddim", "karras", 20, "sigma_schedule", "ddim cannot follow karras; it takes sgm_uniform"),
        ("lcm", "karras", 4, "sigma_schedule", "lcm cannot follow karras; it has a schedule of its own; leave this"),
        ("dpmpp_2m_karras", "beta", 20, "sigma_schedule", "dpmpp_2m_karras cannot follow beta; it takes karras"),
        ("pndm", None, 1, "num_inference_steps", "pndm needs at least 2 steps"),
        ("deis", None, 1, "num_inference_steps", "deis needs at least 2 steps"),
        ("tcd", None, 51, "num_inference_steps", "tcd has at most 50 steps"),
        ("euler", "align_your_steps", 301, "num_inference_steps", "align_your_steps has at most 300 steps"),
    ],
)
def test_what_makes_no_sense_is_named_by_its_field(
    scheduler: SchedulerName, schedule: SigmaSchedule | None, steps: int, field: str, words: str
) -> None:
    refused = refusal(scheduler, schedule, steps)
    assert refused is not None
    assert (refused[0], refused[1].startswith(words)) == (field, True)
    assert refusal(scheduler, None, 20) is None


def test_what_cannot_go_on_from_a_picture_says_so() -> None:
    assert refusal("pndm", None, 20, first_step=8) == ("scheduler", "pndm cannot go on from a picture; choose another")
    assert refusal("pndm", None, 20) is None
    assert refusal("lms", None, 20, first_step=8) is None


def test_the_older_name_of_karras_levels_is_said_as_the_newer_one() -> None:
    assert said_of("dpmpp_2m_karras", None) == said_of("dpmpp_2m", "karras") == ("DPM++ 2M", "Karras")
    assert said_of("euler_a", None) == ("Euler a", None)
