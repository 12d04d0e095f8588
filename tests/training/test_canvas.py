import pytest
import torch

from training.canvas import CELL, paste, place

RED_SQUARE = torch.tensor([255, 0, 0, 255], dtype=torch.uint8).expand(1, 4, 4, 4)
BLUE = torch.tensor([[0.0, 0.0, 1.0]])
RED = [1.0, 0.0, 0.0]


def paste_at(top: int, left: int, pixels: torch.Tensor = RED_SQUARE) -> torch.Tensor:
    return paste(pixels, torch.tensor([0]), torch.tensor([top]), torch.tensor([left]), 8, BLUE)[0]


def test_paste_puts_the_picture_at_its_place() -> None:
    image = paste_at(2, 3)
    assert image[:, 2:6, 3:7].flatten(1).T.tolist() == [RED] * 16
    assert int((image[2] == 1).sum()) == 64 - 16


def test_paste_cuts_what_is_outside() -> None:
    assert int((paste_at(-2, 6)[0] == 1).sum()) == 2 * 2


def test_paste_mixes_by_alpha() -> None:
    half = torch.tensor([255, 0, 0, 51], dtype=torch.uint8).expand(1, 4, 4, 4)
    assert paste_at(0, 0, half)[:, 0, 0].tolist() == pytest.approx([0.2, 0, 0.8])


@pytest.mark.parametrize(("canvas", "side"), [(256, 176), (256, 240), (128, 88), (128, 120)])
def test_place_moves_by_whole_cells_and_stays_inside(canvas: int, side: int) -> None:
    top, left = place(500, canvas, side, 2, torch.device("cpu"))
    middle = (canvas - side) // 2
    for moved in (top, left):
        assert set(((moved - middle) % CELL).tolist()) == {0}
        assert int(moved.min()) >= 0
        assert int(moved.max()) + side <= canvas
