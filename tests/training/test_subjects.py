import io
import json
import tarfile
from pathlib import Path

import pytest

from training.subjects import STYLES, evaluation_subjects, family, held_out_subjects, read_icons, subject_name

KEYS = frozenset({"waving-hand", "waving-hand-dark", "red-apple", "green-heart-light"})


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("red-apple", "red apple"),
        ("waving-hand", "waving hand"),
        ("waving-hand-dark", None),
        ("waving-hand-medium-skin-tone", None),
        ("green-heart-light", "green heart light"),  # no plain "green-heart" beside it: part of the name
        ("flag-greece", None),
        ("pirate-flag", "pirate flag"),
        ("keycap-7", None),
        ("three-oclock", None),
        ("ok-button", None),
        ("libra", None),
        ("man-blonde-hair", "man blond hair"),
        ("person-elf", "elf"),
    ],
)
def test_subject_name(key: str, name: str | None) -> None:
    assert subject_name(key, KEYS) == name


def pack(folder: Path, name: str, keys: list[str]) -> None:
    icons = {"prefix": name, "width": 32, "height": 32, "icons": {key: {"body": f"<g id='{key}'/>"} for key in keys}}
    body = json.dumps(icons).encode()
    with tarfile.open(folder / f"iconify-json-{name}-1.0.0.tgz", "w:gz") as archive:
        info = tarfile.TarInfo("package/icons.json")
        info.size = len(body)
        archive.addfile(info, io.BytesIO(body))


def test_read_icons_keeps_what_enough_sets_draw(tmp_path: Path) -> None:
    for name in STYLES:
        pack(tmp_path, name, ["red-apple", "flag-greece", *(["cat-face"] if name == "noto" else [])])
    pictures = read_icons(tmp_path, min_styles=2)
    assert [(p.subject, p.style) for p in pictures] == [("red apple", style) for style in sorted(STYLES.values())]
    assert pictures[0].svg.startswith("<svg ")
    assert 'viewBox="0 0 32 32"' in pictures[0].svg


def test_read_icons_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="npm pack"):
        read_icons(tmp_path, min_styles=1)


def test_lists_are_fixed_and_apart_where_it_matters() -> None:
    subjects = [f"thing {i:03}" for i in range(160)]
    assert evaluation_subjects(subjects[::-1]) == subjects[::6]
    assert held_out_subjects(subjects) == frozenset(subjects[4::16])


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("woman astronaut", "astronaut"),
        ("astronaut", "astronaut"),
        ("person running", "running"),
        ("man running", "running"),
        ("grinning face", "smiley"),
        ("cat face", "cat face"),
        ("grinning cat", "grinning cat"),
        ("red apple", "red apple"),
        ("girl", "child"),
    ],
)
def test_family(subject: str, expected: str) -> None:
    assert family(subject) == expected
