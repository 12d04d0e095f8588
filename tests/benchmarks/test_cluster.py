"""What the operated cluster would fail for."""

import pytest

from benchmarks.cluster import Row, table
from benchmarks.soak.clients import Fate, Outcome, Picture, Tally

BODY = {"prompt": "a", "num_images": 1, "seed": 5}


def tally(*fates: Fate) -> Tally:
    told = Tally()
    for fate in fates:
        told.add(BODY, Outcome(fate))
    return told


@pytest.mark.parametrize(
    ("row", "broken"),
    [
        (Row("x", tally(Fate.ANSWERED, Fate.REFUSED), 1.0, 0), ""),
        (Row("x", tally(Fate.LOST), 1.0, 0), "lost 1"),
        (Row("x", tally(Fate.ERROR), 1.0, 0), "error 1"),
        (Row("x", tally(Fate.TORN), 1.0, 0), "torn 1"),
        (Row("x", tally(), None, 0), "not healed"),
        (Row("x", tally(), 1.0, 1), "1 replicas started, 0 may"),
    ],
)
def test_what_was_lost_or_started_in_vain_is_broken(row: Row, broken: str) -> None:
    told = row.broken(may_start=0)
    assert broken in told[0] if broken else not told


def test_pictures_are_compared_with_those_of_the_same_weights() -> None:
    told = Tally()
    for picture in (Picture("old", "a"), Picture("new", "b"), Picture("new", "b")):
        told.add(BODY, Outcome(Fate.ANSWERED, {5: picture}))
    assert not Row("x", told, 1.0, 0).broken(may_start=0)
    told.add(BODY, Outcome(Fate.ANSWERED, {5: Picture("old", "b")}))
    assert told.wrong == 1
    assert Row("x", told, 1.0, 0).broken(may_start=0)


def test_the_table_has_a_column_for_each_cell() -> None:
    lines = table([Row("x", tally(Fate.ANSWERED), 1.25, 0)]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1] == "| x | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 1.2 s | 0 |"
