import pytest

from serve_app.errors import TooManyWaiting
from serve_app.fanout.line import Line


def nothing() -> None: ...


def line_of(images: int, max_waiting: int = 4) -> Line:
    line = Line(max_waiting)
    for image in range(images):
        line.join(image, nothing)
    return line


def test_as_many_as_the_replicas_can_paint_do_not_wait() -> None:
    assert line_of(3).positions(capacity=4) == {}
    assert line_of(6).positions(capacity=4) == {4: 1, 5: 2}
    assert line_of(6).waiting(capacity=4) == 2


def test_the_line_moves_up_when_one_leaves() -> None:
    line = line_of(6)
    line.leave(0)
    assert line.positions(capacity=4) == {5: 1}


def test_everyone_hears_of_it_once() -> None:
    line, heard = Line(4), []
    for image in range(3):
        line.join(image, lambda: heard.append("moved"))
    shared = lambda: heard.append("shared")  # noqa: E731 - one listener for two images
    line.join(3, shared)
    line.join(4, shared)
    line.leave(0)
    line.leave(0)
    assert sorted(heard) == ["moved", "moved", "shared"]


def test_a_full_line_turns_away_and_says_when_to_come_back() -> None:
    line = line_of(8)
    line.admit(0, capacity=4, images_per_second=1)
    with pytest.raises(TooManyWaiting, match="4 images are waiting") as refusal:
        line.admit(3, capacity=4, images_per_second=0.5)
    assert refusal.value.retry_after_s == 6


@pytest.mark.parametrize(("rate", "retry_after"), [(0, 10), (1000, 1), (0.01, 60)])
def test_retry_after_is_a_whole_number_of_seconds_within_reason(rate: float, retry_after: int) -> None:
    with pytest.raises(TooManyWaiting) as refusal:
        line_of(8).admit(2, capacity=4, images_per_second=rate)
    assert refusal.value.retry_after_s == retry_after


def test_the_longest_retry_after_is_a_minute() -> None:
    with pytest.raises(TooManyWaiting) as refusal:
        line_of(8).admit(100, capacity=4, images_per_second=0.1)
    assert refusal.value.retry_after_s == 60
