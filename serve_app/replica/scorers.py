"""How sketches are compared: each scorer gives a number, and more is better.

Those here look at the picture alone. A service may have others (`engine.scorers`), such as one that asks how well the
picture agrees with its prompt, for which this package has no model.
"""

import logging
import math
from collections.abc import Callable, Mapping
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import first_line
from serve_app.imaging import Pixels

logger = logging.getLogger("ray.serve")

Scorer = Callable[[Pixels, str], float]
"""Takes a sketch (height x width x 3, uint8 RGB, at most `preview.max_size` pixels long) and its prompt."""

_LUMA = (0.299, 0.587, 0.114)


def sharpness(pixels: Pixels, prompt: str) -> float:
    """Return the mean square of the slopes of the picture's brightness: much detail with clear edges is sharp."""
    brightness: NDArray[np.float64] = pixels @ np.array(_LUMA)
    return float(sum(np.mean(np.square(slope)) for slope in np.gradient(brightness)))


def colourfulness(pixels: Pixels, prompt: str) -> float:
    """Return the measure of Hasler and Suesstrunk, Measuring colourfulness in natural images, 2003."""
    red, green, blue = np.moveaxis(pixels.astype(np.float64), 2, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = math.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * math.hypot(red_green.mean(), yellow_blue.mean()))


OWN: Mapping[str, Scorer] = {"sharpness": sharpness, "colourfulness": colourfulness}


def with_others(paths: Mapping[str, str]) -> Mapping[str, Scorer]:
    """Return our own and those of `engine.scorers`, functions by their import paths. Raises ValueError."""
    return {**OWN, **{name: _imported(name, path) for name, path in paths.items()}}


def _imported(name: str, path: str) -> Scorer:
    module, _, function = path.partition(":")
    try:
        scorer: Scorer = getattr(import_module(module), function)
    except Exception as error:
        raise ValueError(f"engine.scorers: {name}: {path} cannot be imported: {first_line(error)}") from error
    return scorer


def score_of(scorer: Scorer, pixels: Pixels, prompt: str) -> float | None:
    """Return a sketch's score; None where the scorer fails or gives no number, which never costs the picture."""
    try:
        score = float(scorer(pixels, prompt))
    except Exception:
        logger.exception("a sketch could not be scored")
        return None
    return score if math.isfinite(score) else None
