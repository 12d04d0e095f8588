"""Selects and names the pictures of the icon sets: filter, families, evaluation list."""

import json
import re
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STYLES = {"fluent-emoji": "glossy", "fluent-emoji-flat": "flat", "noto": "cartoon", "twemoji": "simple"}
"""Icon set -> the word for its style in prompts."""

MASCOT = "zibo"
"""The creature of `training.mascot`. No word of the vocabulary, so it is spelled with letters."""

_TONE = re.compile(r"-(light|medium-light|medium|medium-dark|dark)$")
_LEFT_OUT = re.compile(
    r"skin-tone|^flag-|keycap|oclock|-thirty|button|regional-indicator|letter|^input-|arrow|^circled-|-sign$|squared|"
    r"^tag-|^variation|combining|-symbol$|dingbat|^digit-|^asterisk$|^number-sign$|^kiss-.*-|^couple-with-heart-.*-|^family-.*-|"
    r"pointed-(up|down)$|^(man|woman|person|men|women|people)-.*-facing-right$|^facing-|-facing-right$"
)
# Letters, or a sign on a coloured square: buttons rather than things.
_SIGNS = frozenset(
    "registered copyright trade-mark information libra aries taurus gemini cancer leo virgo scorpio sagittarius "
    "capricorn aquarius pisces ophiuchus water-closet mens-room womens-room baby-symbol restroom currency-exchange "
    "wavy-dash curly-loop double-curly-loop plus minus divide multiply infinity double-exclamation-mark "
    "exclamation-question-mark medical-symbol recycling-symbol part-alternation-mark japanese-post-office-symbol "
    "elevator passport-control customs baggage-claim left-luggage cinema antenna-bars vibration-mode mobile-phone-off "
    "input-symbols place-of-worship atom-symbol om wheel-of-dharma yin-yang latin-cross orthodox-cross star-of-david "
    "star-and-crescent peace-symbol menorah khanda dotted-six-pointed-star no-entry prohibited no-smoking no-littering "
    "no-bicycles no-pedestrians non-potable-water no-mobile-phones no-one-under-eighteen radioactive biohazard female "
    "male transgender eight-spoked-asterisk sparkle eight-pointed-star diamond-with-a-dot litter-in-bin-sign "
    "potable-water wireless fleur-de-lis".split()
)
# Things that have different names in different sets.
_RENAMED = {
    "moai": "moai statue",
    "phoenix-bird": "phoenix",
    "piata": "pinata",
    "blackbird": "black bird",
    "enraged-face": "pouting face",
    "man-merpeople": "merman",
    "woman-merpeople": "mermaid",
    "person-merpeople": "merperson",
    **{f"person-{w}": w for w in ("elf", "fairy", "genie", "mage", "superhero", "supervillain", "vampire", "zombie")},
    **{f"{w}-deaf": f"deaf {w}" for w in ("man", "woman", "person")},
    **{f"{w}-blonde-hair": f"{w} blond hair" for w in ("man", "woman", "person")},
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One drawing: `subject` in plain words, `style` one of STYLES' words, `svg` the whole document."""

    subject: str
    style: str
    svg: str


def subject_name(key: str, keys: frozenset[str] | set[str]) -> str | None:
    """Return the plain words for an icon's key, or None if it is left out. `keys` are all keys of its set."""
    tone = _TONE.search(key)
    if tone and key[: tone.start()] in keys:
        return None
    if _LEFT_OUT.search(key) or key in _SIGNS:
        return None
    return _RENAMED.get(key, key.replace("-", " "))


def read_icons(folder: Path, min_styles: int) -> list[Picture]:
    """Return the kept pictures of the packed icon sets in `folder`, sorted by subject, then style.

    A subject is kept if at least `min_styles` of the sets draw it: one drawing is too little to learn from.
    """
    found: dict[str, dict[str, Picture]] = defaultdict(dict)
    for name, style in STYLES.items():
        icons = _read_set(folder, name)
        keys = frozenset(icons["icons"])
        for key, icon in icons["icons"].items():
            subject = subject_name(key, keys)
            if subject is not None and not icon.get("hidden"):
                found[subject][style] = Picture(subject, style, _svg(icons, icon))
    return [found[s][style] for s in sorted(found) if len(found[s]) >= min_styles for style in sorted(found[s])]


def _read_set(folder: Path, name: str) -> dict[str, Any]:
    archives = sorted(p for p in folder.glob(f"iconify-json-{name}-*.tgz") if re.search(rf"{name}-\d", p.name))
    if not archives:
        raise FileNotFoundError(
            f"{folder}: no archive of @iconify-json/{name}; fetch it with: npm pack @iconify-json/{name}"
        )
    with tarfile.open(archives[-1]) as archive:
        file = archive.extractfile("package/icons.json")
        assert file is not None
        icons: dict[str, Any] = json.load(file)
    return icons


def _svg(icons: dict[str, Any], icon: dict[str, Any]) -> str:
    box = [icon.get(k, icons.get(k, d)) for k, d in (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
    view = " ".join(map(str, box))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view}">{icon["body"]}</svg>'
    )


def evaluation_subjects(subjects: list[str]) -> list[str]:
    """Return the fixed list of subjects for evaluation: every 6th name in alphabetical order."""
    return sorted(set(subjects))[::6]


def held_out_subjects(subjects: list[str]) -> frozenset[str]:
    """Return the subjects that the autoencoders never see in training: every 16th name, from the 5th."""
    return frozenset(sorted(set(subjects))[4::16])


_PEOPLE = {"man": "person", "woman": "person", "men": "people", "women": "people", "boy": "child", "girl": "child"}
_MOODS = re.compile(
    r"^(grinning|smiling|beaming|winking|kissing|frowning|slightly|squinting|smirking|relieved|pensive|worried|confused|hushed|astonished|"
    r"flushed|anguished|fearful|anxious|sad|disappointed|downcast|weary|tired|persevering|confounded|crying|loudly|angry|enraged|pouting|"
    r"neutral|expressionless|unamused|face|rolling|grimacing|melting|saluting|shaking|dotted|upside|star|rolling|hot|cold|woozy|"
    r"drooling|sleeping|sleepy|yawning|lying|nauseated|sneezing|pleading|hugging|thinking|zany|zipper|partying|disguised|nerd)\b.*\b(face|eyes|mouth|smile)\b"
)


def family(subject: str) -> str:
    """Return the family of near-twins that counts as one class.

    Examples are the gender variants of a person, and the moods of the round face.
    """
    if _MOODS.match(subject) and "cat" not in subject.split():
        return "smiley"
    words = [_PEOPLE.get(w, w) for w in subject.split()]
    # "woman astronaut" and "man astronaut" count as "astronaut".
    if len(words) > 1 and words[0] in ("person", "people") and subject.split()[0] not in ("person", "people"):
        words = words[1:]
    return " ".join(words).removeprefix("person ")
