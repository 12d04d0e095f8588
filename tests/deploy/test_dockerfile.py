"""The Dockerfile, as far as it can be checked without a container engine."""

import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from serve_app.models import embedded_adapters_path, embedded_path
from tests.deploy.manifest import ROOT

TEXT = (ROOT / "Dockerfile").read_text()


@dataclass(frozen=True)
class Stage:
    """A part of the Dockerfile: what it starts from, and its instructions with all lines of each."""

    base: str
    instructions: tuple[str, ...]


def stages(text: str) -> dict[str, Stage]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    instructions = "\n".join(lines).replace("\\\n", " ").splitlines()
    found: dict[str, Stage] = {}
    for instruction in instructions:
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", instruction):
            name = match[2]
            found[name] = Stage(match[1], ())
        else:
            found[name] = Stage(found[name].base, (*found[name].instructions, instruction))
    return found


STAGES = stages(TEXT)


def all_instructions(name: str) -> list[str]:
    """Return the instructions of a stage after those of the stages it starts from."""
    if name not in STAGES:
        return []
    return [*all_instructions(STAGES[name].base), *STAGES[name].instructions]


def copied(text: str) -> set[str]:
    return {source for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for source in line.split()[:-1]}


def test_the_linter_finds_nothing() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert linter, "make .venv/dev installs it"
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_it_copies_is_there_and_nothing_else_is_sent() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied(TEXT) == sent
    assert all((ROOT / name).exists() for name in sent)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_runs_as_rays_user_and_has_what_kuberay_needs(target: str) -> None:
    instructions = all_instructions(target)
    users = [line.split()[1] for line in instructions if line.startswith("USER ")]
    assert users == ["1000:1000"], "nothing after it may be root again"
    assert not [line for line in instructions[instructions.index("USER 1000:1000") :] if line.startswith("RUN ")]
    setup = " ".join(instructions)
    assert "HOME=/home/ray" in setup
    assert {"bash", "wget"} <= set(setup.split())
    assert "--uid 1000" in setup


def test_every_package_is_pinned() -> None:
    instructions = (line for stage in STAGES.values() for line in stage.instructions)
    installs = re.findall(r"pip install [^&]*", " & ".join(instructions))
    assert len(installs) == 3
    assert all("-c /constraints.txt" in line for line in installs)


def test_its_python_is_the_oldest_that_the_package_takes() -> None:
    """The versions in constraints.txt were tested with that one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    assert STAGES["base"].base.startswith(f"python:{oldest}-slim")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_its_command_names_a_config_that_it_holds(target: str) -> None:
    (command,) = [line for line in STAGES[target].instructions if line.startswith("CMD ")]
    (config,) = re.findall(r"/opt/parallel-sdxl/(configs/\w+\.yaml)", command)
    assert (ROOT / config).is_file()


def test_the_wheel_holds_the_embedded_model_and_the_playground() -> None:
    files = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    shipped = [path for folder in (embedded_path(), embedded_adapters_path()) for path in folder.rglob("*")]
    for path in (*shipped, *(ROOT / "serve_app" / "playground").iterdir()):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in files
    assert not [file for file in files if not file.startswith("serve_app/")]
