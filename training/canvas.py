"""Pastes pictures onto backgrounds on the device, in batches."""

from dataclasses import dataclass
from pathlib import Path

import torch

from training.captions import BACKGROUNDS
from training.config import DataConfig
from training.pixels import Labels, load_labels, load_pixels

CELL = 8
"""Pixels along one latent cell. Pictures move by whole cells, so that their latents move with them unchanged."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Every rendering, on one device: `pixels[side]` is (pictures, side, side, 4) uint8 with straight alpha."""

    labels: Labels
    pixels: dict[int, torch.Tensor]
    data: DataConfig
    device: torch.device

    def __len__(self) -> int:
        return len(self.labels.subjects)


def load_pictures(data: DataConfig, device: torch.device, canvases: tuple[int, ...] = (256, 128)) -> Pictures:
    """Return the renderings for `canvases`, moved to `device`."""
    sides = [side for canvas in canvases for side in data.sides[canvas]]
    pixels = {side: torch.from_numpy(load_pixels(Path(data.pictures), side)).to(device) for side in sides}
    return Pictures(load_labels(data.pictures), pixels, data, device)


def palette(device: torch.device) -> torch.Tensor:
    """Return the background colours in the order of BACKGROUNDS, (colours, 3), 0 to 1."""
    return torch.tensor(list(BACKGROUNDS.values()), device=device, dtype=torch.float32) / 255


def paste(
    pixels: torch.Tensor, ids: torch.Tensor, top: torch.Tensor, left: torch.Tensor, side: int, background: torch.Tensor
) -> torch.Tensor:
    """Paste pictures onto flat colours.

    `pixels` (pictures, r, r, 4); `ids`, `top`, `left` (batch,), the place in pixels, may be outside the window;
    `background` (batch, 3), 0 to 1. Returns (batch, 3, side, side), 0 to 1.
    """
    r = pixels.shape[1]
    line = torch.arange(side, device=pixels.device)
    y, x = line - top[:, None], line - left[:, None]
    rgba = pixels[ids[:, None, None], y.clamp(0, r - 1)[:, :, None], x.clamp(0, r - 1)[:, None, :]]
    inside = ((y >= 0) & (y < r))[:, :, None] & ((x >= 0) & (x < r))[:, None, :]
    rgba = rgba.permute(0, 3, 1, 2).float() / 255
    alpha = rgba[:, 3:] * inside[:, None]
    return rgba[:, :3] * alpha + background[:, :, None, None] * (1 - alpha)


def place(batch: int, canvas: int, side: int, jitter: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random (top, left) in pixels for pictures of `side` on a canvas.

    They are centred, then moved by whole cells, never over the edge.
    """
    middle = (canvas - side) // 2
    reach = min(jitter, middle // CELL)
    moved = torch.randint(-reach, reach + 1, (2, batch), device=device) * CELL + middle
    return moved[0], moved[1]


def loose_crops(pictures: Pictures, allowed: torch.Tensor, batch: int, crop: int) -> torch.Tensor:
    """Return random windows for the autoencoders, (batch, 3, crop, crop), -1 to 1.

    They have random places and colours, and the sides of both canvases.
    """
    device = pictures.device
    sides = list(pictures.pixels)
    colours = palette(device)
    parts = []
    share = max(1, batch // len(sides))
    for number, side in enumerate(sides):
        n = share if number + 1 < len(sides) else batch - share * (len(sides) - 1)
        if n <= 0:
            break
        ids = allowed[torch.randint(len(allowed), (n,), device=device)]
        # From filling the window to showing only a corner.
        low, high = min(0, crop - side) - crop // 4, max(0, crop - side) + crop // 4
        top, left = torch.randint(low, high + 1, (2, n), device=device)
        flat = colours[torch.randint(len(colours), (n,), device=device)]
        free = torch.rand(n, 3, device=device)
        background = torch.where(torch.rand(n, 1, device=device) < 0.6, flat, free)
        parts.append(paste(pictures.pixels[side], ids, top, left, crop, background))
    return torch.cat(parts)[torch.randperm(batch, device=device)] * 2 - 1
