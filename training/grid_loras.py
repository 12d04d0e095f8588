"""Stage 10: generate the example images of the LoRAs, 4 prompts with none, each, and both, with the service's engine.

python -m training.grid_loras --model serve_app/models/<name> --loras serve_app/models/<loras> --to <picture>
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from serve_app.recipe import Lora
from training.service import open_service

PROMPTS = (
    "a cat on a sky blue background",
    "a fire engine",
    "a zibo on a yellow background",
    "zibo",
)
MIXES: tuple[tuple[str, ...], ...] = ((), ("blueprint",), ("zibo",), ("blueprint", "zibo"))
SIZE = 256


def sheet(rows: list[torch.Tensor]) -> Image.Image:
    """Return rows of pictures, (pictures, 3, size, size), -1 to 1, as one image."""
    pixels = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).permute(1, 2, 0)
    return Image.fromarray(((pixels + 1) * 127.5).round().byte().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description="generate the example images of the LoRAs")
    parser.add_argument("--model", type=Path, required=True, help="the diffusers folder")
    parser.add_argument("--loras", type=Path, required=True, help="the folder of LoRAs")
    parser.add_argument("--to", type=Path, required=True, help="the picture to write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=0.5, help="scale of the written picture")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = [(prompt, args.seed) for prompt in PROMPTS]
    with open_service(args.model, len(asked), device, args.loras.resolve()) as service:
        rows = [service.generate(asked, 20, SIZE, [Lora(name=name) for name in mix]) for mix in MIXES]
    grid = sheet(rows)
    grid.resize((round(grid.width * args.scale), round(grid.height * args.scale)), Image.Resampling.LANCZOS).save(
        args.to, quality=88
    )


if __name__ == "__main__":
    main()
