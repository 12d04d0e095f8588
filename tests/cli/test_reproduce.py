import numpy as np
import pytest

from serve_app.cli.reproduce import Difference, difference
from serve_app.imaging import Pixels

BLACK: Pixels = np.zeros((4, 5, 3), dtype=np.uint8)


def test_pictures_are_compared_channel_by_channel_without_overflow() -> None:
    other = BLACK.copy()
    other[0, 0] = 255, 0, 0
    other[3, 4] = 5, 0, 1
    for a, b in ((BLACK, other), (other, BLACK)):
        off = difference(a, b)
        assert (off.pixels, off.most, off.mean) == (2, (255, 0, 1), (260 / 20, 0, 1 / 20))


def test_psnr_is_that_of_the_mean_square_error() -> None:
    assert difference(BLACK, BLACK + np.uint8(255)).psnr_db == 0
    assert difference(BLACK, BLACK + np.uint8(1)).psnr_db == pytest.approx(48.1308, abs=1e-4)
    assert difference(BLACK, BLACK) == Difference(0, (0, 0, 0), (0, 0, 0), float("inf"))
