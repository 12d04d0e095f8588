"""Encoded pictures with their captions, prepared in advance and kept on the device for the UNet stage."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F  # noqa: N812, the usual name

from training.canvas import CELL, Pictures, palette, paste, place
from training.captions import BACKGROUNDS, CaptionOdds, caption, other_names
from training.config import UnetConfig
from training.runner import precision
from training.vocabulary import CaptionEncoder

_COLOURS = list(BACKGROUNDS)
_WHITE_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Latents:
    """Encoded pictures of one canvas.

    `latents` (n, channels, cells, cells) bfloat16, `tokens` (n, wordings, length) int16, `time_ids` (n, 6): original
    height and width, top and left of the crop, target height and width, in pixels.
    """

    latents: torch.Tensor
    tokens: torch.Tensor
    time_ids: torch.Tensor

    def draw(self, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return a random batch: latents in float32, token ids of one caption each, size conditioning."""
        device = self.latents.device
        pick = torch.randint(len(self.latents), (batch,), device=device)
        wording = torch.randint(self.tokens.shape[1], (batch,), device=device)
        return self.latents[pick].float(), self.tokens[pick, wording].long(), self.time_ids[pick]


@torch.no_grad()
def encode_pictures(
    pictures: Pictures,
    vae: AutoencoderKL,
    encoder: CaptionEncoder,
    config: UnetConfig,
    canvas: int,
    rounds: int,
    seed: int,
    drawn_as: Callable[[torch.Tensor], torch.Tensor] = lambda images: images,
) -> Latents:
    """Encode every picture `rounds` times, each time with another side, place and background colour.

    `drawn_as` changes images, (batch, 3, canvas, canvas), -1 to 1, before they are encoded.
    """
    rng = random.Random(seed)
    names = other_names(pictures.labels.subjects)
    batch = config.encode_batch * (256 // canvas) ** 2
    latents, tokens, time_ids = [], [], []
    for _ in range(rounds):
        for ids in torch.randperm(len(pictures), device=pictures.device).split(batch):
            images, colours, conditions = _compose(pictures, ids, canvas, config.odd_size, rng)
            with precision(pictures.device):
                latents.append(
                    vae.encode(drawn_as(images).contiguous(memory_format=torch.channels_last))
                    .latent_dist.mode()
                    .to(torch.bfloat16)
                )
            for picture, colour in zip(ids.tolist(), colours, strict=True):
                subject, style = pictures.labels.subjects[picture], pictures.labels.styles[picture]
                wordings = [caption(subject, style, colour, names, CaptionOdds(), rng) for _ in range(config.wordings)]
                tokens.append([encoder.encode(text) for text in wordings])
            time_ids.append(conditions)
    return Latents(
        torch.cat(latents), torch.tensor(tokens, dtype=torch.int16, device=pictures.device), torch.cat(time_ids)
    )


def _compose(
    pictures: Pictures, ids: torch.Tensor, canvas: int, odd: float, rng: random.Random
) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Return images, -1 to 1, colour words and size conditioning of pictures `ids` (one side for the batch)."""
    side = rng.choice(list(pictures.data.sides[canvas]))
    device, batch = pictures.device, len(ids)
    names = ["white" if rng.random() < _WHITE_SHARE else rng.choice(_COLOURS) for _ in range(batch)]
    background = palette(device)[torch.tensor([_COLOURS.index(name) for name in names], device=device)]
    top, left = place(batch, canvas, side, pictures.data.jitter, device)
    draw = torch.rand(2, batch, device=device)
    # A crop's corner, in whole cells: the window cuts off the picture at the top and on the left.
    corner = torch.randint(1, canvas // CELL // 4, (2, batch), device=device) * CELL * (draw[0] < odd)
    images = paste(pictures.pixels[side], ids, top - corner[0], left - corner[1], canvas, background) * 2 - 1
    # Scaled up from a half or a quarter of the side, like small originals.
    small = (draw[1] < odd).long() * torch.randint(1, 3, (batch,), device=device)
    for power in (1, 2):
        chosen = small == power
        fewer = F.interpolate(images, scale_factor=0.5**power, mode="area")
        images = torch.where(
            chosen[:, None, None, None], F.interpolate(fewer, size=(canvas, canvas), mode="bilinear"), images
        )
    original = canvas / 2.0**small
    target = torch.full((batch,), float(canvas), device=device)
    return images, names, torch.stack([original, original, corner[0].float(), corner[1].float(), target, target], dim=1)
