"""`parallel-sdxl vary`: generates relatives of a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from serve_app.cli.generate import generate
from serve_app.cli.info import opened, parameters
from serve_app.cli.reproduce import asked_again, compare_models
from serve_app.cli.service import Service


def vary(
    service: Service,
    picture: Path,
    files: Mapping[str, tuple[Path | None, str]],
    model: str | None,
    variation: Mapping[str, Any],
    num_images: int,
    grid: bool,
    out: Path,
    console: Console,
) -> None:
    """Generate `num_images` relatives of a picture, by a further `variation` of it, and write them to `out`.

    For `files` and `model` see `reproduce`. Raises CommandError.
    """
    embedded, health = parameters(picture, opened(picture)), service.health()
    body = asked_again(embedded, files, model, health)
    body |= {"num_images": num_images, "grid": grid, "variations": [*body.get("variations", ()), dict(variation)]}
    generate(
        service,
        body,
        out,
        console,
        begun=lambda start: compare_models(console, embedded, start.parameters.model, health.version),
    )
