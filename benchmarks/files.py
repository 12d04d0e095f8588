"""`python -m benchmarks.files`: milliseconds to write a picture's file, by the service's writers and by Pillow alone.

Of the clock and of the processors: medians, and the lowest. All ways take turns in random order, with pauses as
between pictures.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from serve_app import jpeg, png
from serve_app.imaging import Pixels

_SIDE = 1024
_QUALITY = 95
_ROUNDS = 41
_PAUSE_S = 0.05
_RANDOM = np.random.default_rng(0)
_EMBEDDED = Path(__file__).parents[1] / "serve_app" / "models" / "emoji-sdxl" / "grid.webp"


def _pillow(file_format: str, **options: Any) -> Callable[[Pixels], bytes]:
    def write(pixels: Pixels) -> bytes:
        file = BytesIO()
        Image.fromarray(pixels).save(file, file_format, **options)
        return file.getvalue()

    return write


_WAYS: Mapping[str, Callable[[Pixels], bytes]] = {
    "JPEG, Pillow": _pillow("JPEG", quality=_QUALITY),
    "JPEG": lambda pixels: jpeg.encode(pixels, _QUALITY),
    "PNG, Pillow": _pillow("PNG", compress_level=1, compress_type=3),
    "PNG": png.encode,
}


def _pictures() -> Mapping[str, Pixels]:
    ramp = np.linspace(0, 255, _SIDE)
    smooth = np.stack(np.broadcast_arrays(ramp, ramp[:, None], (ramp + ramp[:, None]) / 2), axis=-1)
    with Image.open(_EMBEDDED) as page:
        embedded = np.asarray(page.convert("RGB").crop((0, 0, _SIDE, _SIDE)))
    return {
        "the embedded model's": embedded,
        "the same with grain": np.clip(embedded + _RANDOM.normal(0, 3, embedded.shape), 0, 255).astype(np.uint8),
        "gradients": smooth.astype(np.uint8),
        "noise": _RANDOM.integers(0, 256, embedded.shape, dtype=np.uint8),
    }


def main() -> None:
    for name, pixels in _pictures().items():
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in _WAYS}
        for _ in range(_ROUNDS):
            for way in _RANDOM.permutation(list(_WAYS)):
                time.sleep(_PAUSE_S)
                clock, processors = time.perf_counter(), time.process_time()
                _WAYS[way](pixels)
                taken[way].append((time.perf_counter() - clock, time.process_time() - processors))
        print(f"{name}:")
        for way, write in _WAYS.items():
            clocks, all_processors = zip(*taken[way], strict=True)
            size = len(write(pixels)) / 1e6
            print(f"  {way:<14}{_summary(clocks)}, processors {_summary(all_processors)}, {size:.2f} MB")


def _summary(seconds: Sequence[float]) -> str:
    return f"{1000 * median(seconds):6.1f} ({1000 * min(seconds):5.1f})"


if __name__ == "__main__":
    main()
