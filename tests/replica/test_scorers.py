"""What sketches are compared by."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFilter import GaussianBlur

from serve_app.messages import Paused
from serve_app.replica.scorers import OWN, colourfulness, score_of, sharpness, with_others
from tests.conftest import MakeEngine, make_slot

NOISE = Image.effect_noise((64, 64), 80).convert("RGB")


def pixels(picture: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(picture)


def test_a_blurred_picture_is_less_sharp() -> None:
    scores = [sharpness(pixels(NOISE.filter(GaussianBlur(radius))), "") for radius in (0, 1, 2, 4)]
    assert scores == sorted(scores, reverse=True)
    assert sharpness(pixels(Image.new("RGB", (8, 8), "red")), "") == 0


def test_grey_has_no_colour_and_colours_have_their_published_measure() -> None:
    assert colourfulness(pixels(NOISE), "") == 0
    halves = Image.new("RGB", (2, 1), "red")
    halves.putpixel((1, 0), (0, 0, 255))
    # rg is 255 and 0, yb is 127.5 and -255: deviations of 127.5 and 191.25, means of 127.5 and -63.75.
    expected = math.hypot(127.5, 191.25) + 0.3 * math.hypot(127.5, 63.75)
    assert colourfulness(pixels(halves), "") == pytest.approx(expected)


def words(picture: NDArray[np.uint8], prompt: str) -> int:
    return len(prompt.split())


def broken(picture: NDArray[np.uint8], prompt: str) -> float:
    raise RuntimeError("no such luck")


def test_a_service_may_have_others() -> None:
    scorers = with_others({"words": f"{__name__}:words"})
    assert scorers.keys() == {*OWN, "words"}
    assert score_of(scorers["words"], pixels(NOISE), "a red fox") == 3
    for path in (f"{__name__}:nothing", "no.such.module:words"):
        with pytest.raises(ValueError, match=r"engine\.scorers: mine: .* cannot be imported"):
            with_others({"mine": path})


def test_a_scorer_that_fails_or_gives_no_number_gives_no_score() -> None:
    assert score_of(broken, pixels(NOISE), "") is None
    assert score_of(lambda *_: math.nan, pixels(NOISE), "") is None


def test_a_sketch_is_scored_if_that_is_asked(make_engine: MakeEngine) -> None:
    engine = make_engine()
    scores = []
    for by in (None, "sharpness", "colourfulness", "sharpness"):
        collector = engine.submit(make_slot(pause_after=2, score_by=by))
        while not isinstance(paused := collector.next(), Paused):
            pass
        scores.append(paused.score)
    assert scores[0] is None
    assert all(scores[1:])
    assert scores[1] == scores[3] != scores[2], "the same sketch has the same score"
