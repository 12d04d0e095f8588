import pytest

from benchmarks.idle import idle_fraction
from benchmarks.measures import Best, Goal, Measure, PerDevice, Ratio, Result, Subject, Trial, rate, rates
from benchmarks.report import rows, table


def test_a_goal_knows_which_way_is_better() -> None:
    seconds, speed = Goal(must=0.74, aim=0.60), Goal(must=1.60, aim=1.80)
    assert [seconds.verdict(value) for value in (0.6, 0.7, 0.8)] == ["aim", "must", "missed"]
    assert [speed.verdict(value) for value in (1.9, 1.7, 1.5)] == ["aim", "must", "missed"]
    assert Goal(0, 0).verdict(1) == "missed"


def test_rates_leave_the_warm_up_out_and_take_bunches_whole() -> None:
    # Bunches of two, a second apart, after a slow start.
    finished = [0.0, 0.0, 10.0, 10.0, 11.0, 11.0, 12.0, 12.0]
    assert rates(finished, warm_up=2, window=2) == [2.0, 2.0]
    assert rates(finished[:3], warm_up=2, window=2) == []


def test_a_rate_is_that_of_the_bunches() -> None:
    # Bunches of four, two seconds apart, after a slow start.
    finished = [0.0] + [10.0 + 2 * (image // 4) for image in range(20)]
    assert rate(finished, warm_up=1) == [pytest.approx(2.0)]
    assert rate(finished[:5], warm_up=1) == []


def test_idle_is_what_no_span_covers() -> None:
    assert idle_fraction([(0, 4), (2, 6), (8, 10)]) == pytest.approx(0.2)
    assert idle_fraction([(5, 10), (0, 10)]) == 0
    with pytest.raises(ValueError, match="nothing ran"):
        idle_fraction([])


def test_rows_are_measured_missing_or_computed() -> None:
    speeds = tuple(Measure(name, "images/s", "") for name in ("one", "four", "gone"))
    subject = Subject("subject", lambda _: pytest.fail("not opened"), 1, 0, (Trial(speeds, lambda *_: {}, 0),))
    results = [
        Result(name="one", devices=1, samples=(2.0, 1.0, 3.0)),
        Result(name="four", devices=4, samples=(6.0,)),
        Result(name="gone", devices=1, missing="not installed"),
    ]
    derived = (
        Ratio(Measure("scale", "x", ""), "four", "one", per_device=True),
        Ratio(Measure("nothing", "x", ""), "gone", "one"),
        Best(Measure("best", "images/s", "", Goal(6, 8)), ("one", "four", "gone")),
        PerDevice(Measure("each", "images/s", "", Goal(1, 2)), "four"),
        Best(Measure("not asked for", "x", ""), ("other",)),
        PerDevice(Measure("not asked for", "x", ""), "other"),
        PerDevice(Measure("none", "x", ""), "gone"),
    )
    made = {row.measure.name: row for row in rows([[subject]], derived, results)}
    assert made["one"].value == 2.0
    assert made["scale"].value == pytest.approx(6 / 4 / 2)
    assert made["nothing"].missing == "no gone"
    assert (made["best"].value, made["best"].verdict) == (6.0, "must")
    assert (made["each"].value, made["each"].verdict) == (1.5, "must")
    assert made["none"].missing == "no gone"
    assert "not asked for" not in made
    assert "not installed" in table(list(made.values()))
