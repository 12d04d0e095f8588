"""`parallel-sdxl reproduce`: generates a picture again and compares."""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import inf, log10
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from rich.console import Console

from serve_app.cli.errors import Unavailable
from serve_app.cli.info import holds_none, opened, read
from serve_app.cli.pictures import sent_again
from serve_app.cli.request import follow, introduce, make_folder, opening, save, warn
from serve_app.cli.service import Service
from serve_app.cli.text import say
from serve_app.cli.views import only_seen_previews, view_of
from serve_app.imaging import Pixels
from serve_app.metadata import Embedded
from serve_app.schemas import GridEvent, ImageEvent, ModelInfo

_SAME_PICTURE_DB = 50.0
"""Differences by rounding stay above this: 51 dB for SDXL in bfloat16 with several images per UNet call, 60 dB in
float32. See Seeds in the README.
"""
_CHANNELS = ("red", "green", "blue")


@dataclass(frozen=True, slots=True)
class Difference:
    """How two pictures of one size differ: the number of different pixels, and per channel the largest and the mean
    difference (channels are 0 to 255).
    """

    pixels: int
    most: tuple[int, ...]
    mean: tuple[float, ...]
    psnr_db: float


def difference(a: Pixels, b: Pixels) -> Difference:
    """Compare two RGB pictures of the same shape, (height, width, 3)."""
    off = np.abs(a.astype(np.int16) - b)
    squares = float(np.mean(np.square(off, dtype=np.float64)))
    return Difference(
        pixels=int(off.any(axis=2).sum()),
        most=tuple(off.max(axis=(0, 1)).tolist()),
        mean=tuple(off.mean(axis=(0, 1)).tolist()),
        psnr_db=10 * log10(255**2 / squares) if squares else inf,
    )


def reproduce(
    service: Service,
    picture: Path,
    files: Mapping[str, tuple[Path | None, str]],
    model: str | None,
    out: Path | None,
    console: Console,
) -> bool:
    """Generate a picture again from the parameters in it; return whether it is the same. Raises CommandError.

    `files` are those that it went on from, by the fields that hold them, each with the option that names it. `model` is
    which to use, None: the one that made it, if the service has several and it is one of them.
    """
    image = opened(picture)
    embedded, before = read(picture, image), np.asarray(image.convert("RGB"))
    if not embedded:
        raise holds_none(picture)
    if out:
        make_folder(out)
    generated: list[tuple[ImageEvent, bytes]] = []

    def keep(event: ImageEvent | GridEvent, data: bytes) -> str:
        assert isinstance(event, ImageEvent), "no grid was asked for"
        generated.append((event, data))
        return "generated again"

    given = {
        field: sent_again(*files[field], hash=hash)
        for field in files
        if (hash := getattr(embedded.request, field)) is not None
    }
    health = service.health()
    if model is None and embedded.model.name in health.models:
        model = embedded.model.name
    named = {} if model is None else {"model": model}
    body = only_seen_previews(console, {**embedded.request.model_dump(exclude_unset=True), **given, **named})
    with service.stream(body) as events:
        start = opening(events)
        _compare_models(console, embedded, start.parameters.model, health.version)
        introduce(console, start)
        ending = follow(events, view_of(console, start, body), keep)
    warn(console, ending.warnings)
    if not generated:
        raise Unavailable("; ".join(ending.missing))
    ((event, data),) = generated
    if out:
        say(console, f"new picture: {save(out, f'seed-{event.seed}', event, data)}")
    return _verdict(console, picture, before, np.asarray(Pillow.open(BytesIO(data)).convert("RGB")))


def _compare_models(console: Console, embedded: Embedded, model: ModelInfo, version: str) -> None:
    if embedded.model.hash != model.hash:
        then, now = (f"{model.name} ({model.hash})" for model in (embedded.model, model))
        warn(console, [f"another model generated it: {then}; the service has {now}"])
    if embedded.version != version:
        warn(console, [f"another version generated it: {embedded.version}; the service has {version}"])


def _verdict(console: Console, picture: Path, before: Pixels, after: Pixels) -> bool:
    if before.shape != after.shape:
        now, then = (f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (before, after))
        say(console, f"not the same: {picture} is {now}, but was generated as {then}", style="red")
        return False
    if np.array_equal(before, after):
        say(console, f"the same: every pixel of {picture} is equal", style="green")
        return True
    off = difference(before, after)
    close = off.psnr_db >= _SAME_PICTURE_DB
    say(
        console,
        f"{'the same picture with rounding differences' if close else 'not the same'} ({off.psnr_db:.1f} dB PSNR): "
        f"{off.pixels} of {before.shape[0] * before.shape[1]} pixels differ",
        style="yellow" if close else "red",
    )
    for channel, most, mean in zip(_CHANNELS, off.most, off.mean, strict=True):
        say(console, f"  {channel:<5}  at most {most} of 255, {mean:.4f} on average")
    if close:
        say(
            console,
            "Other GPUs, precisions and versions round differently; see Seeds in the README.",
        )
    return False
