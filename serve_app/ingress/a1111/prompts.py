"""LoRAs in prompts, `<lora:name:0.8>`, and prompt editing, `[from:to:when]`, as A1111 has them."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from serve_app.errors import InvalidRequest
from serve_app.recipe import LARGEST_SCALE, MOST_PHASES

_LORA = re.compile(r"<(?:lora|lyco):([^<>:]+)(?::([^<>]*))?>", re.IGNORECASE)

_EDIT = re.compile(
    r"""(?<!\\)\[ (?:(?P<before>[^\[\]():|\\]*):)? (?P<after>[^\[\]():|\\]*):
        \s*(?P<when>\d{1,9}|\d{0,9}\.\d{1,9})\s* \]""",
    re.VERBOSE,
)
"""What has no further brackets in it."""


def edited(texts: Mapping[str, str], steps: int) -> Sequence[tuple[int, Mapping[str, str]]]:
    """Return what prompts are up to which step, in order; the last holds to the end.

    Reads `[from:to:when]`, `[to:when]` and `[from::when]`, also in each other, but without weights in them. As in
    A1111, what follows takes over one step after `when`, a step or, with a point, a share of all. Raises InvalidRequest
    where they change too often; to work out what they are each time could take seconds.
    """
    switches = {switch for text in texts.values() for switch in _switches(text, steps)}
    ends = [*sorted(end for end in switches if 0 < end < steps), steps]
    if (changes := len(ends) - 1) > MOST_PHASES:
        raise InvalidRequest(f"prompt: it changes {changes} times on the way; at most {MOST_PHASES} can be", "prompt")
    return [(end, {name: _until(end, text, steps) for name, text in texts.items()}) for end in ends]


def _switches(text: str, steps: int) -> Iterator[int]:
    while edits := [*_EDIT.finditer(text)]:
        yield from (_last_before(found["when"], steps) for found in edits)
        text = _EDIT.sub(r"\g<after>", text)


def _last_before(when: str, steps: int) -> int:
    """Return the last step before a switch, 0 where there is none before."""
    step = int(float(when) * steps) if "." in when else int(when)
    return step + 1 if step else 0


def _until(end: int, text: str, steps: int) -> str:
    """Return a prompt as it is up to a step, since the last switch before it."""

    def words(found: re.Match[str]) -> str:
        return (found["before"] or "") if end <= _last_before(found["when"], steps) else found["after"]

    while (less := _EDIT.sub(words, text)) != text:
        text = less
    return text


def loras_in(prompt: str) -> set[str]:
    """Return the names of a prompt's LoRAs."""
    return {name for name, _ in _LORA.findall(prompt)}


def without_loras(prompt: str, known: Collection[str] = ()) -> tuple[str, list[dict[str, Any]]]:
    """Return a prompt without its LoRAs, and these; scales of one that is named twice add up.

    As in A1111, a name may lack its folder, if it is that of one file alone; `known` are the files' names. Raises
    InvalidRequest where a scale is no number, or the text encoders and the UNet were to have two.
    """
    scales: dict[str, float] = {}
    for told_name, told in _LORA.findall(prompt):
        name = _with_folder(told_name, known)
        scales[name] = scales.get(name, 0.0) + _scale(name, told)
    for name, scale in scales.items():
        if not -LARGEST_SCALE <= scale <= LARGEST_SCALE:
            bounds = f"from {-LARGEST_SCALE} to {LARGEST_SCALE}"
            raise InvalidRequest(f"prompt: <lora:{name}:{scale:g}> has a scale that is not {bounds}", "prompt")
    return _LORA.sub("", prompt), [{"name": name, "scale": scale} for name, scale in scales.items()]


def _with_folder(name: str, known: Collection[str]) -> str:
    meant = [one for one in known if one.rpartition("/")[2] == name]
    return meant[0] if name not in known and len(meant) == 1 else name


def _scale(name: str, told: str) -> float:
    """Return a scale that may be told twice, of the text encoders (`te=`) and of the UNet (`unet=`)."""
    if not told:
        return 1.0
    parts = told.split(":")
    try:
        first, *others = [float(part.removeprefix("te=").removeprefix("unet=")) for part in parts]
    except ValueError:
        raise InvalidRequest(f"prompt: <lora:{name}:{told}> has no number behind its name", "prompt") from None
    if parts[0].startswith("unet=") and not others:
        others = [1.0]  # that of the text encoders, as in A1111
    if any(other != first for other in others):
        raise InvalidRequest(f"prompt: <lora:{name}:{told}> has two scales; give one for all models", "prompt")
    return first
