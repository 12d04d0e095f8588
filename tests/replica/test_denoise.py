import pytest

from serve_app.replica.denoise import _padding


@pytest.mark.parametrize(("rows", "buckets", "padding"), [(3, (), 0), (3, (4,), 1), (4, (4, 8), 0), (5, (8, 4), 3), (2, (2, 4), 0)])
def test_rows_are_padded_to_the_next_bucket(rows: int, buckets: tuple[int, ...], padding: int) -> None:
    assert _padding(rows, buckets) == padding
