import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command

from serve_app import __version__
from serve_app.cli.__main__ import main
from serve_app.cli.main import app
from serve_app.cli.refusals import option_of
from serve_app.recipe import OF_CONDITIONING, OF_PHASES, PROMPTS, OutputFormat, SchedulerName, SigmaSchedule, Variation
from serve_app.schemas import GenerateRequest, Keep
from tests.cli.command import run

ROOT = Path(__file__).parent.parent.parent
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]  # a group's


def test_the_console_script_is_the_command() -> None:
    module, _, name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][
        "parallel-sdxl"
    ].partition(":")
    assert getattr(import_module(module), name) is main


def test_the_version() -> None:
    assert run("--version").stdout == f"parallel-sdxl {__version__}\n"


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_tells_the_exit_codes(command: tuple[str, ...]) -> None:
    for columns in ("80", "50"):
        done = run(*command, "--help", COLUMNS=columns)
        assert done.returncode == 0
        assert "Exit codes: 0 success; 1 " in " ".join(done.stdout.split())
        assert max(map(len, done.stdout.splitlines())) <= int(columns)
        assert "…" not in done.stdout


def test_help_names_every_scheduler_and_format() -> None:
    options = {parameter.name: parameter.help for parameter in COMMANDS["generate"].params}
    assert set(re.findall(r"\w+", options["scheduler"])) - {"or"} == set(get_args(SchedulerName))
    schedules, _, condition = options["sigma_schedule"].partition(", if ")
    assert (set(re.findall(r"\w+", schedules)) - {"or"}, condition) == (
        set(get_args(SigmaSchedule)),
        "the scheduler can.",
    )
    assert set(re.findall(r"\w+", options["output_format"])) - {"or"} == set(get_args(OutputFormat))


def test_every_field_of_a_request_has_an_option() -> None:
    options = {option for parameter in COMMANDS["generate"].params for option in parameter.opts}
    # Previews in a terminal need no exact steps, what is written to files here need not be kept there, and it goes on
    # with a broken stream unasked. What the model is told of sizes is left to programs.
    fields = set(GenerateRequest.model_fields) - {"prompt", "preview_steps", "response_format", "on_disconnect", "id"}
    # The prompts name the first; `vary`, `branch` and `explore` are for the others.
    fields -= {"embeddings", "variations", "before", "pause_after", "keep"}
    fields -= {*OF_CONDITIONING} - {*PROMPTS}
    assert {option_of(field) for field in fields} <= options
    options = {option for parameter in COMMANDS["branch"].params for option in parameter.opts}
    assert {option_of(field) for field in (*OF_PHASES, "before")} - {"PROMPT"} <= options
    options = {option for parameter in COMMANDS["explore"].params for option in parameter.opts}
    assert {option_of(f"keep.{field}") for field in Keep.model_fields} <= options
    options = {option for parameter in COMMANDS["vary"].params for option in parameter.opts}
    assert {option_of(f"variations.1.{field}") for field in Variation.model_fields} <= options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate",), "PROMPT"),
        (("generate", "a", "--size", "256"), "'256' is not WxH"),
        (("generate", "caf\udce9"), "'PROMPT': it is not UTF-8"),
        (("generate", "a", "--negative-prompt", "caf\udce9"), "'--negative-prompt': it is not UTF-8"),
        (("generate", "a", "--seeds", "1;2"), "'1;2' is not a list of seeds"),
        (("generate", "a", "--url", "localhost:8000"), "does not start with http:// or https://"),
        (("generate", "a", "--url", "http://localhost:eight"), "is not a URL"),
        (("generate", "a", "--out", "/dev/null/x"), "cannot write to /dev/null/x"),
        (("generate", "a", "--out", "/proc"), "cannot write to /proc"),
        (("generate", "a", "--guidance", "nan"), "a setting cannot be sent"),
        (("info", "gone.png"), "does not exist"),
    ],
)
def test_wrong_use_says_what_is_wrong(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_help_waits_for_nothing() -> None:
    """What takes time to import is imported when a command runs."""
    slow = {"httpx2", "pydantic", "numpy", "PIL", "ray", "torch", "diffusers", "fastapi", "serve_app.schemas"}
    script = f"import sys, serve_app.cli.main; print(*(set(sys.modules) & {slow}))"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split() == []
    )


def test_no_command_needs_ray_or_torch() -> None:
    heavy = {"ray", "torch", "diffusers", "fastapi"}
    script = (
        "import sys, serve_app.cli.generate, serve_app.cli.reproduce, serve_app.cli.info; "
        f"print(*(set(sys.modules) & {heavy}))"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split() == []
    )


def test_the_commands_of_the_readme_exist() -> None:
    for line in re.findall(r"parallel-sdxl ((?:generate|reproduce|info)\b.*)", (ROOT / "README.md").read_text()):
        command, *arguments = shlex.split(line.split("`")[0], comments=True)
        options = {
            option for parameter in COMMANDS[command].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {argument for argument in arguments if argument.startswith("-")} <= options, line
