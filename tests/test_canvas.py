"""What a picture and a mask become at the size of a slot, and what is put back."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image as Pillow

from serve_app.canvas import MaskIsEmpty, canvas_of
from serve_app.crop import cropped_to, filled_to, region_of

THEIRS = VaeImageProcessor()


def settings(**changes: Any) -> Any:
    same = {"width": 64, "height": 64, "mask_blur": 0, "padding_mask_crop": None, "keep_outside": True}
    return SimpleNamespace(**{**same, **changes})


def a_picture(width: int, height: int) -> Pillow.Image:
    return Pillow.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))


def test_regions_are_diffusers_own() -> None:
    random = np.random.default_rng(2)
    for _ in range(300):
        height, width, wide, high = (int(n) for n in random.integers(8, 80, 4))
        mask = np.zeros((height, width), np.uint8)
        top, left = int(random.integers(height)), int(random.integers(width))
        mask[top : top + int(random.integers(1, 40)), left : left + int(random.integers(1, 40))] = 255
        padding = int(random.integers(0, 20))
        theirs = THEIRS.get_crop_region(Pillow.fromarray(mask), wide, high, padding)
        assert region_of(mask, wide, high, padding) == theirs


@pytest.mark.parametrize("size", [(40, 40), (40, 17), (17, 40), (64, 64), (1, 9)])
def test_scaling_is_diffusers_own(size: tuple[int, int]) -> None:
    picture = a_picture(*size)
    for wide, high in ((64, 64), (64, 24), (24, 64)):
        filled, cropped = filled_to(picture, wide, high), cropped_to(picture, wide, high)
        assert filled.tobytes() == THEIRS._resize_and_fill(picture, wide, high).tobytes()
        assert cropped.tobytes() == THEIRS._resize_and_crop(picture, wide, high).tobytes()


def a_mask(box: tuple[int, int, int, int]) -> Pillow.Image:
    mask = Pillow.new("L", (64, 64))
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize("changes", [{}, {"mask_blur": 4}, {"padding_mask_crop": 3}, {"keep_outside": False}])
def test_a_mask_that_marks_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MaskIsEmpty):
        canvas_of(a_picture(64, 64), Pillow.new("L", (64, 64), 127), settings(**changes))


def test_a_mask_between_the_latents_marks_nothing() -> None:
    with pytest.raises(MaskIsEmpty):
        canvas_of(a_picture(64, 64), a_mask((1, 1, 7, 7)), settings())


def test_soft_edges_mix_and_the_rest_is_exact() -> None:
    picture = a_picture(64, 64)
    canvas = canvas_of(picture, a_mask((16, 16, 48, 48)), settings(mask_blur=2))
    white = np.full((64, 64, 3), 255, np.uint8)
    finished, own = canvas.finished(white), np.asarray(picture)
    assert np.array_equal(finished[:8], own[:8])
    assert (finished[28:36, 28:36] == 255).all()
    assert 0 < abs(int(finished[16, 32, 0]) - int(own[16, 32, 0])) < 255 - int(own[16, 32, 0])
    assert canvas.mask
    assert set(np.unique(canvas.mask.values)) == {0, 255}


def test_a_region_without_its_outside_kept_is_put_back_as_a_whole() -> None:
    picture = a_picture(64, 64)
    canvas = canvas_of(picture, a_mask((24, 24, 40, 40)), settings(padding_mask_crop=4, keep_outside=False))
    finished = canvas.finished(np.full((64, 64, 3), 255, np.uint8))
    inside = np.zeros((64, 64), bool)
    inside[20:44, 20:44] = True
    assert (finished[inside] == 255).all()
    assert np.array_equal(finished[~inside], np.asarray(picture)[~inside])


def test_equal_pictures_have_equal_hashes_and_others_do_not() -> None:
    one, two = a_picture(64, 64), a_picture(32, 32)
    first, again, other = (canvas_of(p, None, settings()).image.digest for p in (one, one.copy(), two))
    assert first == again != other
