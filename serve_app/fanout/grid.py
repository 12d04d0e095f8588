"""The contact sheet of a generation."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serve_app.fanout.events import PASSED_OVER
from serve_app.fanout.generation import Generation
from serve_app.fanout.plan import Plan
from serve_app.imaging import Pixels, contact_sheet, encode_bare
from serve_app.schemas import Grid, Image, NoPicture, Parameters
from serve_app.side_work import brief_side_work

NO_GRID = "the grid could not be made; the images are complete"

_EXTRA_S = 5.0
"""How long after its request's deadline a grid may still be made."""


async def grid_of(
    plan: Plan, generation: Generation, pixels: Callable[[Any], Awaitable[Pixels | None]]
) -> tuple[Grid | None, list[str]]:
    """Return the contact sheet if one is wanted and has a picture on it, and what a person should know of it.

    `pixels` gets an image's pixels by their reference, None where there are none.
    """
    refs, warnings = generation.pixels, list[str]()
    if not (plan.wants_grid and refs):
        return None, []
    async with brief_side_work(NO_GRID, warnings, plan.deadline + _EXTRA_S - time.monotonic()):
        shown = [slot.index for slot in plan.slots if not _is_passed_over(generation.images.get(slot.index))]
        cells = await asyncio.gather(*[pixels(refs.get(index)) for index in shown])
        warnings += [
            f"the grid lacks image {i}: its pixels were lost; the image itself is complete"
            for i, cell in zip(shown, cells, strict=True)
            if cell is None and i in refs
        ]
        return await asyncio.to_thread(_encode, cells, plan.parameters), warnings
    return None, warnings


def _is_passed_over(image: Image | None) -> bool:
    return isinstance(image, NoPicture) and image.error == PASSED_OVER


def _encode(cells: Sequence[Pixels | None], parameters: Parameters) -> Grid:
    sheet = contact_sheet(cells, parameters.width, parameters.height)
    height, width, _ = sheet.shape
    return Grid(
        width=width,
        height=height,
        media_type=f"image/{parameters.output_format}",
        b64_json=encode_bare(
            sheet,
            parameters.output_format,
            parameters.output_compression,
            composite=parameters.init_image is not None,
        ),
    )
