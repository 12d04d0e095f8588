"""The README matches the code."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from serve_app import errors
from serve_app.config import AppArgs
from serve_app.ingress.requests import request_model
from serve_app.schemas import Event

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HTTP = (ROOT / "docs" / "http.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
REQUEST = request_model(AppArgs())


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"make (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text())))
)
def test_every_make_command_exists(target: str) -> None:
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:configs|docs|serve_app|deploy)[\w/]*\.(?:yaml|py|png|md)", README)))
)
def test_every_file_exists(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("body", re.findall(r"-d '(\{.*?\})'", README))
def test_every_request_is_valid(body: str) -> None:
    REQUEST.model_validate(json.loads(body))


def test_there_is_a_curl_for_every_route() -> None:
    assert set(re.findall(r"curl (?:-N )?http://127\.0\.0\.1:8000(/\w+)", README)) == {
        "/generate",
        "/stream",
        "/health",
        "/status",
    }


def test_every_request_field_is_documented_and_no_other() -> None:
    table = HTTP.split("## Requests")[1].split("Images come as")[0]
    assert set(
        re.findall(
            r"`(\w+)`(?=[,` |]*.*\|)",
            "\n".join(line.split("|")[1] + "|" for line in table.splitlines() if line.startswith("| `")),
        )
    ) == set(REQUEST.model_fields)


def test_every_event_is_documented() -> None:
    kinds = {get_args(event.model_fields["type"].annotation)[0] for event in get_args(Event)}
    table = HTTP.split("those of all images interleaved:")[1].split("## Broken")[0]
    assert {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    } == kinds


def test_every_error_is_documented() -> None:
    for error in errors.ServiceError.__subclasses__():
        assert re.search(rf"{error.status} [^,;]*`{error.type}`", HTTP), error


def test_every_config_is_listed() -> None:
    assert set(re.findall(r"`configs/(\w+)\.yaml` \|", README)) == {p.stem for p in (ROOT / "configs").glob("*.yaml")}
