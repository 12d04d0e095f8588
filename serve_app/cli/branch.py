"""`parallel-sdxl branch`: generates a picture again up to a step, and goes on with other prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from serve_app.branches import branched
from serve_app.cli.errors import SettingRefused
from serve_app.cli.generate import generate
from serve_app.cli.info import opened, parameters
from serve_app.cli.reproduce import asked_again, compare_models
from serve_app.cli.service import Service
from serve_app.recipe import Recipe


def branch(
    service: Service,
    picture: Path,
    files: Mapping[str, tuple[Path | None, str]],
    model: str | None,
    from_step: int,
    changes: Mapping[str, Any],
    out: Path,
    console: Console,
) -> None:
    """Generate the branch that leaves a picture after a step for other settings, and write it to `out`.

    For `files` and `model` see `reproduce`. Raises CommandError.
    """
    embedded = parameters(picture, opened(picture))
    left = {**changes, "before": _before(embedded.request, from_step, changes)}
    health = service.health()
    generate(
        service,
        asked_again(embedded, files, model, health) | left,
        out,
        console,
        begun=lambda start: compare_models(console, embedded, start.parameters.model, health.version),
    )


def _before(recipe: Recipe, step: int, changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the phases of a branch as a request has them. Raises SettingRefused."""
    first, last = recipe.first_step + 1, recipe.num_inference_steps - 1
    if not first <= step <= last:
        raise SettingRefused(f"the picture can be left after each of its steps from {first} to {last}", "before")
    try:
        before = branched(recipe, step, changes).before
    except ValidationError as error:
        fault, *_ = error.errors()
        raise SettingRefused(f"{fault['loc'][0]}: {fault['msg']}", str(fault["loc"][0])) from None
    except ValueError as error:
        raise SettingRefused(str(error), "before") from None
    return [{"until_step": phase.until_step, **phase.settings} for phase in before]
