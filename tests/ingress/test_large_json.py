"""Large answers are the JSON that they would be in one piece."""

import pytest
from pydantic_core import to_json

from serve_app.ingress.large_json import in_pieces
from serve_app.schemas import Answer, ErrorDetail, Grid, Image, NoPicture, Picture

_LIKE_A_FILE = '"b64_json":""'
_PICTURE = Picture(
    index=0, seed=7, width=64, height=64, media_type=_LIKE_A_FILE, b64_json="cGljdHVyZQ==", gpu_seconds=1
)
_FAILED = NoPicture(index=1, seed=8, status="failed", error=ErrorDetail(type="internal", message=_LIKE_A_FILE))
_GRID = Grid(width=64, height=64, media_type="image/png", b64_json="Z3JpZA==")


class _Result(Answer):
    images: list[Image]
    grid: Grid | None
    warnings: list[str]


@pytest.mark.parametrize("images", [[], [_PICTURE], [_FAILED, _PICTURE, _PICTURE]])
@pytest.mark.parametrize("grid", [None, _GRID])
async def test_pieces_are_the_whole(images: list[Image], grid: Grid | None) -> None:
    result = _Result(images=images, grid=grid, warnings=["a", _LIKE_A_FILE])
    assert b"".join([piece async for piece in in_pieces(result)]) == to_json(result)
