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
    "before": "--from-step",
    "pause_after": "--sketch",
}
"""Options whose name differs from their field in a request."""


@contextmanager
def refusals(prompt: str = "PROMPT") -> Iterator[None]:
    """Let the command line refuse what the service refuses. Raises typer.BadParameter.

    `prompt` is how it is told the prompt.
    """
    from serve_app.cli.errors import SettingRefused

    try:
        yield
    except SettingRefused as error:
        raise typer.BadParameter(error.message, param_hint=error.param and _hint(error.param, prompt)) from None


def _hint(field: str, prompt: str) -> str:
    return prompt if field == "prompt" else option_of(field)


def option_of(field: str) -> str:
    """Return the option that sets a field of a request."""
    name, *rest = field.split(".")
    if name == "variations" and rest[-1:] == ["seed"]:
        return "--variation-seed"
    if name == "keep" and rest:
        return _OPTIONS["pause_after"] if rest == ["at_step"] else f"--{rest[0]}"
    return _OPTIONS.get(name, "--" + name.replace("_", "-"))
