"""Stage 8: generate the model card's example images, 24 prompts by 4 seeds, with the service's engine.

python -m training.grid --model serve_app/models/<name> --to serve_app/models/<name>/grid.webp
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from training.service import open_service

PROMPTS = (
    "a red apple",
    "a cat",
    "a dog",
    "a rocket on a sky blue background",
    "an octopus on yellow",
    "a slice of pizza",
    "a ghost on a purple background",
    "grinning face with smiling eyes",
    "hiking boot",
    "an astronaut",
    "a sunflower on a green background",
    "police car",
    "birthday cake",
    "a dragon",
    "a guitar",
    "a castle on black",
    "a penguin on a mint background",
    "a hamburger",
    "a house with a garden",
    "a rainbow",
    "a unicorn",
    "a heart on a pink background",
    "santa claus",
    "a robot on orange",
)
SEEDS = 4
SIZE = 256
COLUMNS = 12


def sheet(pictures: torch.Tensor) -> Image.Image:
    """Return (prompts * seeds, 3, size, size), -1 to 1, as one image with a prompt's seeds in a column."""
    prompts, size = len(pictures) // SEEDS, pictures.shape[-1]
    cells = pictures.view(prompts // COLUMNS, COLUMNS, SEEDS, 3, size, size)
    pixels = cells.permute(0, 2, 4, 1, 5, 3).reshape(-1, COLUMNS * size, 3)
    return Image.fromarray(((pixels + 1) * 127.5).round().byte().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description="generate the model card's example images")
    parser.add_argument("--model", type=Path, required=True, help="the diffusers folder")
    parser.add_argument("--to", type=Path, required=True, help="the picture to write")
    parser.add_argument("--scale", type=float, default=0.5, help="scale of the written picture")
    args = parser.parse_args()
    with open_service(args.model, 4, torch.device("cuda" if torch.cuda.is_available() else "cpu")) as service:
        grid = sheet(service.generate([(prompt, seed) for prompt in PROMPTS for seed in range(SEEDS)], 20, SIZE))
    grid.resize((round(grid.width * args.scale), round(grid.height * args.scale)), Image.Resampling.LANCZOS).save(
        args.to, quality=88
    )


if __name__ == "__main__":
    main()
