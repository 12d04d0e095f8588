"""Stage 1: draw every kept picture at every side as RGBA pixels, and write the vocabulary.

python -m training.render
"""

import io
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image
from tqdm import tqdm

from training.captions import all_words
from training.config import DataConfig, load_config, stage_arguments
from training.pixels import pixel_file
from training.subjects import Picture, read_icons
from training.vocabulary import save_vocabulary


def draw(svg: str, side: int) -> np.ndarray:
    """Return an SVG document as (side, side, 4) uint8, straight alpha, centred in the square."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(canvas)


def render_all(data: DataConfig, limit: int | None = None) -> None:
    """Write `labels.json` and one `{side}.npy` of (pictures, side, side, 4) for each side into `data.pictures`."""
    pictures = read_icons(data.icons, data.min_styles)[:limit]
    data.pictures.mkdir(parents=True, exist_ok=True)
    sides = sorted({side for group in data.sides.values() for side in group})
    for side in sides:
        np.lib.format.open_memmap(
            pixel_file(data.pictures, side), mode="w+", dtype=np.uint8, shape=(len(pictures), side, side, 4)
        ).flush()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        job = partial(_draw_into, folder=data.pictures, sides=sides)
        drawn = pool.map(job, enumerate(pictures), chunksize=16)
        for _ in tqdm(drawn, total=len(pictures), desc="render", mininterval=2):
            pass
    labels = {"subjects": [p.subject for p in pictures], "styles": [p.style for p in pictures]}
    (data.pictures / "labels.json").write_text(json.dumps(labels), encoding="utf-8")


def write_vocabulary(data: DataConfig) -> None:
    """Write the vocabulary of all captions into `data.vocabulary`; the same icon sets give the same one."""
    save_vocabulary(all_words(p.subject for p in read_icons(data.icons, data.min_styles)), data.vocabulary)


def _draw_into(numbered: tuple[int, Picture], folder: Path, sides: list[int]) -> None:
    index, picture = numbered
    for side in sides:
        np.load(pixel_file(folder, side), mmap_mode="r+")[index] = draw(picture.svg, side)


def main() -> None:
    parser = stage_arguments("draw the pictures and write the vocabulary")
    parser.add_argument("--limit", type=int, help="draw only the first LIMIT pictures")
    parser.add_argument("--vocabulary-only", action="store_true", help="draw nothing")
    args = parser.parse_args()
    config = load_config(args.config, args.changes)
    write_vocabulary(config.data)
    if not args.vocabulary_only:
        render_all(config.data, args.limit)


if __name__ == "__main__":
    main()
