import io
import re
from base64 import b64decode

import pytest
from PIL import Image
from rich.console import Console

from serve_app.cli.thumbnails import Cells, Draw, Thumbnails, draw_of, half_blocks, iterm2, kitty
from tests.cli.server import START

CELLS = Cells(16, 8)
PICTURE = Image.linear_gradient("L").convert("RGB")


def console(colours: str | None = "truecolor", width: int = 80, height: int = 24) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=colours, width=width, height=height)  # type: ignore[arg-type]  # one of its names


@pytest.mark.parametrize(
    ("environ", "colours", "draw"),
    [
        ({"TERM": "xterm-kitty"}, "truecolor", kitty),
        ({"TERM": "xterm-ghostty"}, "truecolor", kitty),
        ({"KITTY_WINDOW_ID": "1", "TERM": "xterm-256color"}, "256", kitty),
        ({"TERM_PROGRAM": "iTerm.app"}, "truecolor", iterm2),
        ({"TERM_PROGRAM": "WezTerm"}, "truecolor", iterm2),
        ({"LC_TERMINAL": "iTerm2"}, "256", iterm2),
        ({"LC_TERMINAL": "iTerm2", "TMUX": "/run/tmux"}, "truecolor", half_blocks),
        ({"TERM_PROGRAM": "Apple_Terminal"}, "256", None),
        ({"TERM": "xterm-256color"}, "truecolor", half_blocks),
        ({"TERM": "xterm-kitty"}, None, None),
    ],
)
def test_each_terminal_is_drawn_to_in_its_own_way(
    environ: dict[str, str], colours: str | None, draw: Draw | None
) -> None:
    assert draw_of(console(colours), environ) is draw


def test_a_terminal_without_colours_wanted_gets_no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert draw_of(console(), {"TERM": "xterm-kitty"}) is None


def test_a_terminal_whose_encoding_has_no_blocks_gets_no_pictures() -> None:
    latin = Console(file=io.TextIOWrapper(io.BytesIO(), "latin-1"), force_terminal=True, color_system="truecolor")
    assert draw_of(latin, {}) is None


def test_kitty_gets_a_png_in_pieces_that_takes_the_place_of_the_last() -> None:
    noise = Image.effect_noise((256, 256), 50).convert("RGB")
    first, second = (kitty(noise, CELLS, index) for index in (0, 1))
    pieces = first.removesuffix("\x1b\\").split("\x1b\\")
    heads, data = zip(*(piece.removeprefix("\x1b_G").split(";") for piece in pieces), strict=True)
    assert len(pieces) > 2
    assert all(len(piece) <= 4096 for piece in data)
    assert [head[-3:] for head in heads[1:-1]] == ["m=1"] * (len(pieces) - 2)
    keys = dict(pair.split("=") for pair in heads[0].split(","))
    assert {key: keys[key] for key in "afqCcrm"} == {
        "a": "T",
        "f": "100",
        "q": "2",
        "C": "1",
        "c": "16",
        "r": "8",
        "m": "1",
    }
    assert heads[-1] == "m=0"
    assert Image.open(io.BytesIO(b64decode("".join(data)))).format == "PNG"
    assert kitty(noise, CELLS, 0) == first
    assert f"i={int(keys['i']) + 1}," in second


def test_iterm2_gets_one_file_as_large_as_its_cells() -> None:
    head, data = iterm2(PICTURE, CELLS, 0).removesuffix("\x07").split(":")
    assert head.startswith("\x1b]1337;File=inline=1;width=16;height=8;")
    assert Image.open(io.BytesIO(b64decode(data))).size == (160, 160)


def test_half_blocks_hold_two_pixels_each() -> None:
    red_over_blue = Image.new("RGB", (1, 2), "red")
    red_over_blue.putpixel((0, 1), (0, 0, 255))
    assert half_blocks(red_over_blue, Cells(1, 1), 0) == "\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[m"
    assert half_blocks(PICTURE, CELLS, 0).count("▀") == 16 * 8


@pytest.mark.parametrize(
    ("width", "height", "images", "rows"),
    [(80, 24, 2, 8), (80, 24, 8, 6), (50, 30, 10, 4), (80, 24, 16, None), (80, 8, 2, 4), (7, 24, 1, None)],
)
def test_thumbnails_are_as_large_as_there_is_room_above_the_bars(
    width: int, height: int, images: int, rows: int | None
) -> None:
    start = START.model_copy(update={"seeds": list(range(images))})
    screen = console(width=width, height=height)
    thumbnails = Thumbnails.above(screen, start)
    if rows is None:
        assert thumbnails is None
        return
    assert thumbnails
    thumbnails.make_room()
    assert isinstance(screen.file, io.StringIO)
    taken = screen.file.getvalue().count("\n")
    assert taken % (rows + 1) == 0
    assert taken + images < height


def test_pictures_are_as_wide_as_they_are() -> None:
    start = START.model_copy(update={"parameters": START.parameters.model_copy(update={"width": 128})})
    screen = console()
    thumbnails = Thumbnails.above(screen, start)
    assert thumbnails
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    thumbnails.show(1, file.getvalue())
    assert isinstance(screen.file, io.StringIO)
    drawn = screen.file.getvalue()
    assert drawn.count("▀") == 32 * 8
    assert drawn.startswith("\x1b7\x1b[10A\x1b[35G"), "nine lines and a bar up, beside the first"
    assert drawn.endswith("\x1b8")


def test_a_second_view_of_a_command_leaves_the_pictures_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-kitty")
    monkeypatch.delenv("TMUX", raising=False)
    file, screen = io.BytesIO(), console()
    PICTURE.save(file, "PNG")
    for before in (0, len(START.seeds)):
        thumbnails = Thumbnails.above(screen, START, before)
        assert thumbnails
        for index in range(len(START.seeds)):
            thumbnails.show(index, file.getvalue())
    assert isinstance(screen.file, io.StringIO)
    assert len(set(re.findall(r"i=(\d+),", screen.file.getvalue()))) == 2 * len(START.seeds)


def test_a_caption_is_never_wider_than_its_picture() -> None:
    """A picture that is far higher than wide is one column, where a seed's end would be all of it."""
    parameters = START.parameters.model_copy(update={"width": 64, "height": 1536})
    screen = console()
    thumbnails = Thumbnails.above(screen, START.model_copy(update={"parameters": parameters, "seeds": [4294967295, 7]}))
    assert thumbnails
    thumbnails.make_room()
    assert isinstance(screen.file, io.StringIO)
    assert screen.file.getvalue().splitlines()[-1] == "…  7"
