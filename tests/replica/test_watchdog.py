"""The watchdog with a clock of the test's own."""

from contextlib import ExitStack, suppress

import pytest

from serve_app.replica.watchdog import Watchdog

FIRST_S = 120.0


class Watched:
    def __init__(self, stall_timeout_s: float = FIRST_S) -> None:
        self.now = 0.0
        self.watchdog = Watchdog(stall_timeout_s, lambda: self.now)

    def work(self, seconds: float, *shape: int, times: int = 1) -> None:
        for _ in range(times):
            with self.watchdog.watching("a step", *shape):
                self.now += seconds

    def stalls_after(self, *shape: int, kind: str = "a step") -> float:
        """Return how long a piece of work runs before it counts as stalled."""
        began = self.now
        with self.watchdog.watching(kind, *shape):
            while self.watchdog.stalled() is None:
                self.now += 0.5
                assert self.now - began < 20_000
        return self.now - began


def test_the_first_uses_may_take_long() -> None:
    for uses in (0, 1):
        watched = Watched()
        watched.work(1, times=uses)
        assert FIRST_S <= watched.stalls_after() <= FIRST_S + 1


def test_later_ones_may_take_twenty_times_as_long_as_usual() -> None:
    watched = Watched()
    watched.work(90)
    watched.work(2, times=5)
    assert 40 <= watched.stalls_after() <= 41


def test_quick_work_may_take_ten_seconds() -> None:
    watched = Watched()
    watched.work(0.01, times=5)
    assert 10 <= watched.stalls_after() <= 11


def test_kinds_and_shapes_are_learned_separately() -> None:
    watched = Watched()
    watched.work(0.01, 2, 64, 64, times=5)
    assert watched.stalls_after(2, 64, 64) <= 11
    assert watched.stalls_after(2, 64, 64, kind="a preview") >= FIRST_S
    assert watched.stalls_after(1, 64, 64) >= FIRST_S
    assert watched.stalls_after(2, 32, 128) >= FIRST_S


def test_what_has_stalled_is_named_with_its_shape() -> None:
    watched = Watched(stall_timeout_s=1)
    with watched.watchdog.watching("a step", 2, 64, 128):
        watched.now += 1.5
        assert watched.watchdog.stalled() == "a step of 2 x 64 x 128 has not ended for 2 s"


@pytest.mark.parametrize(("shape", "bound"), [((2, 512, 1024), 2400), ((1, 256, 256), 1200), ((1, 1024, 1024), 2400)])
def test_the_first_use_of_a_shape_may_take_as_long_as_the_largest_known_one_suggests(
    shape: tuple[int, ...], bound: float
) -> None:
    """A machine that takes a minute for a step may take longer for a larger one."""
    watched = Watched()
    watched.work(20, 1, 64, 64, times=3)  # small ones say less
    watched.work(60, 2, 512, 512, times=3)
    assert bound <= watched.stalls_after(*shape) <= bound + 1


def test_what_is_known_is_bounded_and_the_last_used_is_kept() -> None:
    watched = Watched()
    for width in range(1000):
        watched.work(0.01, 1, 8, width)
        if width % 200 == 0:
            watched.work(0.01, 1, 64, 64)
    assert len(watched.watchdog._usual) <= 256
    assert watched.stalls_after(1, 64, 64) <= 11


def test_one_slow_time_is_forgotten() -> None:
    watched = Watched()
    watched.work(1, times=5)
    watched.work(15)
    assert 300 <= watched.stalls_after() <= 301
    watched.work(1, times=800)
    assert watched.stalls_after() <= 21


def test_the_timeout_bounds_the_floor() -> None:
    watched = Watched(stall_timeout_s=2)
    watched.work(0.01, times=5)
    assert 2 <= watched.stalls_after() <= 3


def test_time_in_which_the_whole_process_stood_still_does_not_count() -> None:
    watched = Watched()
    watched.work(0.01, times=5)
    with watched.watchdog.watching("a step"):
        watched.watchdog.stalled()
        watched.now += 60
        assert watched.watchdog.stalled() is None


def test_work_that_ends_in_time_never_counts_as_stalled() -> None:
    watched = Watched()
    for _ in range(100):
        with ExitStack() as works:
            for thread in range(4):
                works.enter_context(watched.watchdog.watching(f"thread {thread}"))
            watched.now += 1
            assert watched.watchdog.stalled() is None


def test_work_that_fails_says_nothing_of_how_long_it_takes() -> None:
    watched = Watched()
    for _ in range(5):
        with suppress(MemoryError), watched.watchdog.watching("a step"):
            raise MemoryError
    assert watched.stalls_after() >= FIRST_S


def test_work_that_fails_is_over() -> None:
    watched = Watched()
    try:
        watched.work(0.01, times=5)
        with watched.watchdog.watching("a step"):
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    for _ in range(100):
        watched.now += 1
        assert watched.watchdog.stalled() is None
