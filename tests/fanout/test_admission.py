import pytest

from serve_app.errors import TooManyWaiting
from serve_app.fanout.admission import Admission


def nothing() -> None: ...


def admission_of(images: int, max_waiting: int = 4) -> Admission:
    admission = Admission(max_waiting)
    for image in range(images):
        admission.join(image, nothing)
    return admission


def test_as_many_as_the_replicas_can_generate_do_not_wait() -> None:
    assert admission_of(3).positions(capacity=4) == {}
    assert admission_of(6).positions(capacity=4) == {4: 1, 5: 2}
    assert admission_of(6).waiting(capacity=4) == 2


def test_the_queue_moves_up_when_one_leaves() -> None:
    admission = admission_of(6)
    admission.leave(0)
    assert admission.positions(capacity=4) == {5: 1}


def test_everyone_hears_of_it_once() -> None:
    admission, heard = Admission(4), []
    for image in range(3):
        admission.join(image, lambda: heard.append("moved"))
    shared = lambda: heard.append("shared")  # noqa: E731 - one listener for two images
    admission.join(3, shared)
    admission.join(4, shared)
    admission.leave(0)
    admission.leave(0)
    assert sorted(heard) == ["moved", "moved", "shared"]


def test_a_full_queue_turns_away_and_says_when_to_come_back() -> None:
    admission = admission_of(8)
    admission.admit(0, capacity=4, images_per_second=1)
    with pytest.raises(TooManyWaiting, match="4 images are waiting") as refusal:
        admission.admit(3, capacity=4, images_per_second=0.5)
    assert refusal.value.retry_after_s == 6


@pytest.mark.parametrize(("rate", "retry_after"), [(0, 10), (1000, 1), (0.01, 60)])
def test_retry_after_is_a_whole_number_of_seconds_within_reason(rate: float, retry_after: int) -> None:
    with pytest.raises(TooManyWaiting) as refusal:
        admission_of(8).admit(2, capacity=4, images_per_second=rate)
    assert refusal.value.retry_after_s == retry_after


def test_the_longest_retry_after_is_a_minute() -> None:
    with pytest.raises(TooManyWaiting) as refusal:
        admission_of(8).admit(100, capacity=4, images_per_second=0.1)
    assert refusal.value.retry_after_s == 60
