"""What the service refuses, said by the names of the command line's options."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

_OPTIONS = {
    "prompt": "PROMPT",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "width": "--size",
    "height": "--size",
    "output_format": "--format",
    "output_compression": "--compression",
    "timeout_s": "--timeout",
    "init_image": "--init",
    "mask_image": "--mask",
    "loras": "--lora",
    "variations": "--strength",
}
"""Options whose name differs from their field in a request."""


@contextmanager
def refusals() -> Iterator[None]:
    """Let the command line refuse what the service refuses. Raises typer.BadParameter."""
    from serve_app.cli.errors import SettingRefused

    try:
        yield
    except SettingRefused as error:
        raise typer.BadParameter(error.message, param_hint=error.param and option_of(error.param)) from None


def option_of(field: str) -> str:
    """Return the option that sets a field of a request."""
    name, *rest = field.split(".")
    if name == "variations" and rest[-1:] == ["seed"]:
        return "--variation-seed"
    return _OPTIONS.get(name, "--" + name.replace("_", "-"))
