"""Reads weights in prompts as A1111's web UI does: `(words:1.3)`, `(words)`, `[words]`, backslashes, BREAK."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

_ROUND, _SQUARE = 1.1, 1 / 1.1
"""What brackets without a number multiply the weights in them by."""

LARGEST_WEIGHT = 1000
"""In both directions. Much more, and there are no numbers for what the model is given."""

_LEXEMES = re.compile(
    r"""
      \\(?P<escaped>[()\[\]\\]?)                                # a backslash alone is left out
    | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<bracket>[()\[\]])
    | (?P<words>[^\\()\[\]:]+|:)
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt, and how much each word in it counts."""

    text: str
    weight: float = 1.0


Part = Sequence[Piece]
"""What stands between two BREAKs."""


def too_heavy(prompt: str) -> Piece | None:
    """Return a piece that weighs more than `LARGEST_WEIGHT`, if there is one."""
    return next((piece for part in weighted(prompt) for piece in part if abs(piece.weight) > LARGEST_WEIGHT), None)


def weighted(prompt: str) -> Sequence[Part]:
    """Return the parts of a prompt. Any text is a prompt: brackets that nothing opens are words."""
    return _Reading().of(prompt)


class _Reading:
    def __init__(self) -> None:
        self._texts: list[str | None] = []  # None: BREAK
        self._weights: list[float] = []
        self._opened: dict[str, list[int]] = {"(": [], "[": []}

    def of(self, prompt: str) -> Sequence[Part]:
        for found in _LEXEMES.finditer(prompt):
            if found["escaped"] is not None:
                self._add(found["escaped"])
            elif found["words"] is not None:
                self._add_words(found["words"])
            elif found["bracket"] in self._opened:
                self._opened[found["bracket"]].append(len(self._texts))
            elif found[0] == "]":
                self._close("[", _SQUARE, found[0])
            else:
                self._close("(", float(found["weight"] or _ROUND), found[0])
        for bracket, factor in (("(", _ROUND), ("[", _SQUARE)):
            while self._opened[bracket]:
                self._close(bracket, factor, "")
        return self._parts()

    def _add(self, text: str | None) -> None:
        self._texts.append(text)
        self._weights.append(1.0)

    def _add_words(self, words: str) -> None:
        # The spaces around each are left out, as A1111's pattern does, which takes long for many spaces without any.
        first, *others = _BREAK.split(words)
        self._add(first.rstrip() if others else first)
        for number, text in enumerate(others, 1):
            self._add(None)
            self._add(text.lstrip() if number == len(others) else text.strip())

    def _close(self, bracket: str, factor: float, literally: str) -> None:
        """Multiply the weights since a bracket; where none is open, what closes it is words."""
        if not self._opened[bracket]:
            self._add(literally)
            return
        for place in range(self._opened[bracket].pop(), len(self._weights)):
            self._weights[place] *= factor

    def _parts(self) -> Sequence[Part]:
        """Return what has been read, neighbours of the same weight as one piece: they may be parts of a word."""
        parts: list[list[tuple[str, float]]] = [[]]
        for text, weight in zip(self._texts, self._weights, strict=True):
            if text is None:
                parts.append([])
            elif text:
                parts[-1].append((text, weight))
        if len(parts) > 1 and not parts[-1]:
            parts.pop()  # a BREAK at the end
        return [
            [Piece("".join(text for text, _ in same), weight) for weight, same in groupby(part, lambda piece: piece[1])]
            for part in parts
        ]
