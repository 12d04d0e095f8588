from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest

from serve_app.cli.errors import Unusable
from serve_app.cli.pictures import sent, sent_again
from serve_app.cli.reproduce import Difference, difference
from serve_app.imaging import Pixels
from serve_app.recipe import picture_hash

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


def test_the_file_that_a_picture_went_on_from_is_asked_for_by_its_hash(tmp_path: Path) -> None:
    file, other = tmp_path / "photo.png", tmp_path / "other.png"
    file.write_bytes(b"photo")
    other.write_bytes(b"other")
    hash = picture_hash(b"photo")
    assert sent_again(file, "--init", hash=hash) == sent(file) == b64encode(b"photo").decode()
    with pytest.raises(Unusable, match=f"a file with the hash {hash}: name that file with --init"):
        sent_again(None, "--init", hash=hash)
    with pytest.raises(Unusable, match=f"other.png is not the file .* its hash is sha256:.*, not {hash}"):
        sent_again(other, "--init", hash=hash)
