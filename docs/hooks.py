"""What the site takes from elsewhere in the repository, so that nothing is written twice.

A line `<!-- README.md: Heading -->` in a page becomes what that file says below that heading. Whole files become pages,
and so do the settings and the alerts.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from serve_app.config import AppArgs

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parent.parent
PAGES = {"CONTRIBUTING.md": "contributing.md", "benchmarks/RESULTS.md": "results.md", "CHANGELOG.md": "changelog.md"}
RULES = ROOT / "configs" / "prometheus" / "rules.yaml"
PICTURES = {"serve_app/models/emoji-sdxl/grid.webp": "grid.webp"}
MOVED = PAGES | PICTURES
_INCLUDE = re.compile(r"^<!-- (\S+\.md): (.+) -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#]*)(#[^)]*)?\)")
_LABEL = re.compile(r"\{\{ \$labels\.(\w+) \}\}")
_HEADING = re.compile(r"^#+ (.+)$")


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    pages = {page: at_home((ROOT / source).read_text()) for source, page in PAGES.items()}
    for page, text in {**pages, "settings.md": settings_page(), "alerts.md": alerts_page()}.items():
        files.append(File.generated(config, page, content=text))
    for source, name in PICTURES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the lines that name a section of another file."""
    return _INCLUDE.sub(lambda match: at_home(section((ROOT / match[1]).read_text(), match[2])), markdown)


def section(text: str, heading: str) -> str:
    """Return what a text says below a heading, up to the next one. Raises ValueError if there is no such heading."""
    lines, found, fenced = [], False, False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if not fenced and (match := _HEADING.match(line)):
            if found:
                break
            found = match[1] == heading
        elif found:
            lines.append(line)
    if not found:
        raise ValueError(f"there is no heading {heading!r}")
    return "\n".join(lines).strip()


def at_home(markdown: str) -> str:
    """Return text with its links as seen from docs/; what the site does not have is named without a link."""

    def moved(match: re.Match[str]) -> str:
        mark, words, target, anchor = match.groups(default="")
        if target in MOVED:
            return f"{mark}[{words}]({MOVED[target]}{anchor})"
        if target.startswith("docs/"):
            return f"{mark}[{words}]({target.removeprefix('docs/')}{anchor})"
        return words

    return _LINK.sub(moved, markdown)


def settings_page() -> str:
    """Return the page of all settings: their names as in a config, defaults, bounds and meanings."""
    lines = [
        "# Settings",
        "",
        "The `args` of an application in a Serve config. Unknown names and values that can never work are errors.",
    ]
    for model, path in _models(AppArgs, ""):
        doc = " ".join((model.__doc__ or "").split())
        lines += ["", f"## `{path.rstrip('.')}`" if path else "## At the top", "", doc, ""]
        lines += ["| setting | default | |", "| --- | --- | --- |"]
        for name, info in model.model_fields.items():
            if not _model(info.annotation):
                meaning = f"{info.description} {_bounds(info)}".strip().replace("|", "\\|")
                lines.append(f"| `{path}{name}` | {_default(info)} | {meaning} |")
    return "\n".join(lines) + "\n"


def alerts_page() -> str:
    """Return the page of all alerts: when each fires, how urgent it is, and what to do."""
    lines = [
        "# Alerts",
        "",
        "All of `configs/prometheus/rules.yaml`. `page` wakes somebody; `ticket` can wait until the morning.",
    ]
    for rule in (rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]):
        said = rule["annotations"]
        meaning = _LABEL.sub(r"`\1`", said["summary"].removeprefix("{{ $labels.application }}: "))
        after = f", after {rule['for']}" if "for" in rule else ""
        lines += ["", f"## {rule['alert']}", "", f"*{rule['labels']['severity']}*{after}: {meaning}."]
        lines += ["", said["action"], "", "```promql", rule["expr"].strip(), "```"]
    return "\n".join(lines) + "\n"


def _models(model: type[BaseModel], path: str) -> Iterator[tuple[type[BaseModel], str]]:
    """Yield a model and all models in it, with the path that their settings' names begin with."""
    yield model, path
    for name, info in model.model_fields.items():
        if inner := _model(info.annotation):
            yield from _models(inner, f"{path}{name}.")


def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds, if it holds one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _default(info: FieldInfo) -> str:
    value = info.get_default()
    return "" if value is None or value == () else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _bounds(info: FieldInfo) -> str:
    """Return which values are allowed, as far as the type says it in numbers or by name."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "multiple_of": "a multiple of"}
    limits = [
        f"{text} {getattr(data, key):g}"
        for data in info.metadata
        for key, text in words.items()
        if getattr(data, key, None) is not None
    ]
    choices = [f"`{choice}`" for choice in _choices(info.annotation)]
    said = ", ".join(limits) or ("one of " + ", ".join(choices) if choices else "")
    return said and f"*{said[0].upper()}{said[1:]}.*"


def _choices(annotation: Any) -> list[str]:
    """Return the texts that a Literal allows, also inside of a union with None."""
    if annotation is None or isinstance(annotation, type):
        return []
    arguments = get_args(annotation)
    if arguments and all(isinstance(argument, str) for argument in arguments) and get_origin(annotation) is not None:
        return list(arguments)
    return [choice for argument in arguments for choice in _choices(argument)]
