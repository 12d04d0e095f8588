"""The site takes everything that is written elsewhere from there. `make docs` builds it, and checks its links."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from docs.hooks import ROOT, RULES, alerts_page, at_home, on_page_markdown, section, settings_page
from serve_app.config import AppArgs
from serve_app.config.models import OWN

PAGES = sorted((ROOT / "docs").glob("*.md"))


def settings(model: BaseModel, path: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from settings(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def test_every_setting_is_there_with_its_default_and_its_meaning() -> None:
    rows = [line.split(" | ") for line in settings_page().splitlines() if line.startswith("| `")]
    shown = {name.removeprefix("| ").strip("`"): (default, meaning) for name, default, meaning in rows}
    expected = dict(settings(AppArgs()))
    assert shown.keys() == expected.keys()
    for name, value in expected.items():
        default, meaning = shown[name]
        written = str(value).lower() if isinstance(value, bool) else value
        assert default == ("" if value in (None, ()) else f"`{written}`")
        assert not meaning.startswith("None")


def test_bounds_and_choices_are_shown() -> None:
    page = settings_page()
    assert "*At least 8, a multiple of 8.*" in page
    assert "*One of `none`, `regional`, `full`.*" in page


def test_every_alert_is_there_with_what_to_do() -> None:
    page, rules = alerts_page(), yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert "{{" not in page
    for rule in rules:
        _, _, below = page.partition(f"## {rule['alert']}\n")
        assert rule["annotations"]["action"] in below.partition("\n## ")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_takes_from_other_files_exists(page: Any) -> None:
    assert ".md:" not in on_page_markdown(page.read_text())


def test_every_test_that_is_named_exists() -> None:
    files = [*(ROOT / "tests").rglob("test_*.py")]
    tests = {file.stem for file in files} | {
        name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    for page in [*PAGES, *ROOT.glob("*.md"), ROOT / "benchmarks" / "RESULTS.md"]:
        assert {*re.findall(r"`(test_\w+)`", page.read_text())} <= tests, page.name


def test_a_section_ends_at_the_next_heading_and_not_at_a_comment_in_code() -> None:
    text = "# A\n\none\n\n```sh\n# B\n```\n\n### B\n\ntwo\n"
    assert section(text, "A") == "one\n\n```sh\n# B\n```"
    assert section(text, "B") == "two"


def test_a_heading_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="Nowhere"):
        section("# A\n", "Nowhere")


@pytest.mark.parametrize(
    ("link", "moved"),
    [
        ("[a](docs/http.md#errors)", "[a](http.md#errors)"),
        ("![a](docs/playground.png)", "![a](playground.png)"),
        ("[a](benchmarks/RESULTS.md)", "[a](results.md)"),
        ("![a](serve_app/models/emoji-sdxl/grid.webp)", "![a](grid.webp)"),
        ("[a](NOTICE)", "a"),
        ("[a](https://example.com/docs/x)", "[a](https://example.com/docs/x)"),
        ("[a](#errors)", "[a](#errors)"),
    ],
)
def test_links_lead_to_the_same_place_from_the_site(link: str, moved: str) -> None:
    assert at_home(link) == moved


def test_the_example_of_several_models_is_valid() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "several.md").read_text(), re.DOTALL)
    served = AppArgs.model_validate(yaml.safe_load(example)).served
    assert {name: (own.num_replicas, own.model.dtype) for name, own in served.items()} == {
        "sdxl": (3, "bfloat16"),
        "turbo": (1, "bfloat16"),
    }


def test_what_a_model_may_have_of_its_own_is_documented() -> None:
    (sentence,) = re.findall(r"A model may have for itself (.*?);", (ROOT / "docs" / "several.md").read_text())
    assert set(re.findall(r"`(\w+)`", sentence)) == set(OWN)
