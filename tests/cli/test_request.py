from pathlib import Path

import pytest

from serve_app.cli.errors import Unusable
from serve_app.cli.request import save
from serve_app.schemas import GridEvent

GRID = GridEvent(width=1, height=1, media_type="image/webp", b64_json="")


def test_a_name_that_is_taken_gets_a_number_and_the_same_file_keeps_its_name(tmp_path: Path) -> None:
    contents = [b"one", b"two", b"one", b"three", b"two"]
    assert [save(tmp_path, "grid", GRID, data).name for data in contents] == [
        "grid.webp",
        "grid-2.webp",
        "grid.webp",
        "grid-3.webp",
        "grid-2.webp",
    ]
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"one", b"three", b"two"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"cannot write .*gone/grid\.webp: No such file"):
        save(tmp_path / "gone", "grid", GRID, b"")
