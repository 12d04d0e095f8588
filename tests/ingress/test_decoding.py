"""Pictures from strangers: a right result or a clear refusal, and memory within bounds."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from serve_app.ingress.decoding import UnreadablePicture, mask_of, picture_of
from tests.ingress.hostile import MOST_PIXELS, READ, REFUSED, Content, half, turned

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF data")


@pytest.mark.parametrize(("content", "color"), READ.values(), ids=READ)
def test_read_right(content: Content, color: Any) -> None:
    picture = picture_of(content(), MOST_PIXELS)
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture).astype(int) - color).max() <= 3, "a lossy file may round"


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(content: Content, words: str) -> None:
    with pytest.raises(UnreadablePicture, match=words):
        picture_of(content(), MOST_PIXELS)


def test_a_camera_held_on_its_side() -> None:
    assert np.array_equal(np.asarray(picture_of(turned(6), MOST_PIXELS)), np.asarray(half()))
    assert np.asarray(picture_of(turned(8), MOST_PIXELS))[0, 0].tolist() == [0, 0, 0]
    assert np.asarray(picture_of(turned(99), MOST_PIXELS)).shape == (16, 8, 3), "no such orientation"


def test_what_is_transparent_in_a_mask_is_kept() -> None:
    content, _ = READ["transparent"]
    assert not np.asarray(mask_of(content(), MOST_PIXELS)).any()


def test_memory_stays_within_bounds() -> None:
    """Measured in a process of its own, whose peak nothing before has raised."""
    code = """
import resource, warnings
from contextlib import suppress
from serve_app.ingress.decoding import UnreadablePicture, picture_of
from tests.ingress.hostile import MOST_PIXELS, REFUSED
warnings.simplefilter("ignore")
before = None
for file in [made() for made, _ in REFUSED.values()]:
    before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(UnreadablePicture):
        picture_of(file, MOST_PIXELS)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) < 32 * 1024, "kilobytes"
