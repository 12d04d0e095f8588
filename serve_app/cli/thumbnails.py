"""Pictures on a terminal: by its graphics protocol, or as half blocks in true colour."""

import os
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from typing import Self

from PIL import Image as Pillow
from rich.console import Console

from serve_app.schemas import StartEvent

_ROWS = (8, 6, 4)
"""Heights of a thumbnail in lines; the first that fits is used."""
_GAP = 2
_CELL = (10, 20)
"""Assumed width and height of a terminal cell in pixels."""


@dataclass(frozen=True, slots=True)
class Cells:
    """A size on the terminal, in cells."""

    columns: int
    rows: int


Draw = Callable[[Pillow.Image, Cells, int], str]
"""Takes a picture, its size in cells and its number; returns what to write with the cursor at its upper left corner."""


def draw_of(console: Console, environ: Mapping[str, str] = os.environ) -> Draw | None:
    """Return the best way to draw on this terminal, or None."""
    if not console.color_system or console.no_color:
        return None
    if "TMUX" not in environ:  # tmux swallows the protocols
        if "KITTY_WINDOW_ID" in environ or environ.get("TERM") in ("xterm-kitty", "xterm-ghostty"):
            return kitty
        if environ.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
            return iterm2
    return half_blocks if console.color_system == "truecolor" and console.encoding.startswith("utf") else None


def kitty(picture: Pillow.Image, cells: Cells, number: int) -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol/: a picture replaces the one with the same id."""
    data = _file(picture, cells, "PNG")
    pieces = [data[i : i + 4096] for i in range(0, len(data), 4096)]
    # Ids are shared by the whole terminal: derive ours from the process id.
    heads = [f"a=T,f=100,q=2,C=1,i={(os.getpid() << 8) + number + 1},c={cells.columns},r={cells.rows},"] + [""] * (
        len(pieces) - 1
    )
    return "".join(
        f"\x1b_G{head}m={int(i < len(pieces) - 1)};{piece}\x1b\\"
        for i, (head, piece) in enumerate(zip(heads, pieces, strict=True))
    )


def iterm2(picture: Pillow.Image, cells: Cells, number: int) -> str:
    """https://iterm2.com/documentation-images.html"""
    data = _file(picture, cells, "JPEG")
    return (
        f"\x1b]1337;File=inline=1;width={cells.columns};height={cells.rows};"
        f"preserveAspectRatio=0;doNotMoveCursor=1:{data}\x07"
    )


def half_blocks(picture: Pillow.Image, cells: Cells, number: int) -> str:
    """Two pixels per cell: the foreground colour is the upper one, the background the lower one."""
    data = picture.resize((cells.columns, 2 * cells.rows)).tobytes()
    pixels = [f"{data[i]};{data[i + 1]};{data[i + 2]}" for i in range(0, len(data), 3)]
    lines = []
    for row in range(cells.rows):
        top, bottom = (pixels[(2 * row + half) * cells.columns :][: cells.columns] for half in (0, 1))
        lines.append("".join(f"\x1b[38;2;{upper};48;2;{lower}m▀" for upper, lower in zip(top, bottom, strict=True)))
    down_and_back = f"\x1b[B\x1b[{cells.columns}D"
    return down_and_back.join(lines) + "\x1b[m"


def _file(picture: Pillow.Image, cells: Cells, kind: str) -> str:
    file = BytesIO()
    picture.resize((cells.columns * _CELL[0], cells.rows * _CELL[1])).save(file, kind)
    return b64encode(file.getbuffer()).decode("ascii")


class Thumbnails:
    """Rows of small pictures above the progress bars. The cursor is on the last bar.

    `shown_before` is how many pictures this command has drawn elsewhere, which are to stay.
    """

    def __init__(self, console: Console, draw: Draw, start: StartEvent, cells: Cells, shown_before: int = 0) -> None:
        self._shown_before = shown_before
        self._console = console
        self._size = console.size
        self._draw = draw
        self._seeds = start.seeds
        self._cells = cells
        self._per_line = _per_line(console, cells)

    @classmethod
    def above(cls, console: Console, start: StartEvent, shown_before: int = 0) -> Self | None:
        """Return the largest thumbnails that fit above one bar per image; None without room or a way to draw."""
        draw, aspect = draw_of(console), start.parameters.width / start.parameters.height
        if draw is None:
            return None
        for rows in _ROWS:
            cells = Cells(max(1, round(aspect * rows * _CELL[1] / _CELL[0])), rows)
            thumbnails = cls(console, draw, start, cells, shown_before)
            if thumbnails._per_line and thumbnails._height + len(start.seeds) < console.height:
                return thumbnails
        return None

    def make_room(self) -> None:
        """Print empty lines for the thumbnails, with their captions; the bars come below."""
        for i in range(0, len(self._seeds), self._per_line):
            captions = (_caption(seed, self._cells.columns) for seed in self._seeds[i : i + self._per_line])
            self._console.out("\n" * self._cells.rows + (" " * _GAP).join(captions), highlight=False)

    def show(self, index: int, data: bytes) -> None:
        """Draw a picture file in its place."""
        if self._console.size != self._size:  # after a resize the positions are unknown
            return
        line, place = divmod(index, self._per_line)
        up = self._height + len(self._seeds) - 1 - line * (self._cells.rows + 1)
        column = place * (self._cells.columns + _GAP) + 1
        art = self._draw(Pillow.open(BytesIO(data)).convert("RGB"), self._cells, self._shown_before + index)
        self._console.file.write(f"\x1b7\x1b[{up}A\x1b[{column}G{art}\x1b8")
        self._console.file.flush()

    @property
    def _height(self) -> int:
        return ceil(len(self._seeds) / self._per_line) * (self._cells.rows + 1)


def _per_line(console: Console, cells: Cells) -> int:
    # Keep the last column free: terminals disagree on where the cursor is after writing there.
    return (console.width - 1 + _GAP) // (cells.columns + _GAP)


def _caption(seed: int, columns: int) -> str:
    """Return the seed as a caption; if it is too long only its end, where neighbours differ."""
    text = str(seed)
    return f"{text if len(text) <= columns else '…' + text[len(text) - columns + 1 :]:<{columns}}"
