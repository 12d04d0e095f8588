"""Reads the output of the rendering stage without importing the renderer."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True)
class Labels:
    """The subject and the style of each picture, in the order of the pixel files."""

    subjects: list[str]
    styles: list[str]


def pixel_file(folder: Path, side: int) -> Path:
    """Return the file with the renderings of one side."""
    return folder / f"{side}.npy"


def load_labels(folder: Path) -> Labels:
    """Return the labels that `training.render` wrote next to the pixels."""
    return Labels(**json.loads((folder / "labels.json").read_text(encoding="utf-8")))


def load_pixels(folder: Path, side: int) -> np.ndarray:
    """Return (pictures, side, side, 4) uint8, straight alpha."""
    pixels: np.ndarray = np.load(pixel_file(folder, side))
    return pixels
