"""`make` in a folder of its own, with a stand-in for pip."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder whose Python notes its arguments and fails at a file `broken`, ALL_PROXY or PYTHONDONTWRITEBYTECODE."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> calls\n[ ! -e broken ] && [ -z "$ALL_PROXY$PYTHONDONTWRITEBYTECODE" ]\n')
    python.chmod(0o755)
    return tmp_path


def install(project: Path, **env: str) -> tuple[int, list[str]]:
    environment = {**os.environ, **env}
    done = subprocess.run(["make", ".venv/dev"], cwd=project, env=environment, capture_output=True, timeout=60)
    return done.returncode, (project / "calls").read_text().splitlines()


def test_a_proxy_that_cannot_be_used_does_not_keep_from_an_index_that_needs_none(project: Path) -> None:
    code, calls = install(project, ALL_PROXY="socks5://127.0.0.1:9")
    assert code == 0
    assert calls[0::2] == calls[1::2], "each once more"
    assert [call.split("constraints.txt ")[1] for call in calls[0::2]] == [
        "pip>=25.1",
        "-e .",
        "--group dev",
        "--no-deps sd-prompt-reader",
    ]


def test_installing_goes_the_way_that_the_environment_names_and_once(project: Path) -> None:
    code, calls = install(project, HTTPS_PROXY="http://proxy.example")
    assert (code, len(calls)) == (0, 4)


def test_modules_are_compiled_by_their_first_import_even_where_the_environment_forbids_to_keep_that(
    project: Path,
) -> None:
    code, calls = install(project, PYTHONDONTWRITEBYTECODE="1")
    assert code == 0
    assert all("--no-compile" in call for call in calls)


def test_an_installation_that_fails_fails(project: Path) -> None:
    (project / "broken").touch()
    assert install(project)[0] != 0
    assert len(install(project)[1]) == 2, "and is not tried twice without a reason"
