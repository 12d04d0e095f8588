"""What the service says of itself while it has no replica, and when it asks clients to come again."""

from dataclasses import dataclass

from serve_app.fanout.starts import Starts
from serve_app.messages import START_NEWS_S


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_falls_asleep_and_wakes_in_as_long_as_the_last_start_took() -> None:
    clock = Clock()
    starts = Starts(may_sleep=True, clock=clock)
    assert (starts.readiness, starts.retry_after_s) == ("starting", 10)

    clock.now += 24
    starts.look(ready=True, asleep=False)
    assert starts.readiness == "ready"

    clock.now += 1000
    starts.look(ready=False, asleep=True)
    clock.now += 1000
    assert (starts.readiness, starts.retry_after_s) == ("asleep", 24)

    starts.look(ready=False, asleep=False)
    assert (starts.readiness, starts.retry_after_s) == ("waking", 24)
    clock.now += 10
    starts.look(ready=False, asleep=False)
    assert (starts.readiness, starts.retry_after_s) == ("waking", 14)
    clock.now += 30
    assert starts.retry_after_s == 6, "a start that takes longer than the last is nearly over"

    starts.look(ready=True, asleep=False)
    starts.look(ready=False, asleep=True)
    assert starts.retry_after_s == 40


def test_the_moment_between_the_last_replica_and_sleep_is_no_outage() -> None:
    """Serve is asked every few seconds how many it wants."""
    starts = Starts(may_sleep=True)
    starts.look(ready=True, asleep=False)
    starts.look(ready=False, asleep=False)
    assert starts.readiness == "waking"


def test_an_ingress_that_starts_while_the_service_sleeps_says_so() -> None:
    starts = Starts(may_sleep=True)
    starts.look(ready=False, asleep=True)
    assert (starts.readiness, starts.retry_after_s) == ("asleep", 10)


def test_a_service_that_may_not_sleep_starts_again() -> None:
    starts = Starts(may_sleep=False)
    starts.look(ready=True, asleep=False)
    starts.look(ready=False, asleep=True)
    assert starts.readiness == "starting"


def test_nobody_is_told_to_come_in_more_than_a_minute() -> None:
    clock = Clock()
    starts = Starts(may_sleep=True, clock=clock)
    clock.now += 300
    starts.look(ready=True, asleep=False)
    starts.look(ready=False, asleep=True)
    assert starts.retry_after_s == 60


def test_how_far_starts_are_is_said_until_nothing_more_is_heard_of_them() -> None:
    clock = Clock()
    starts = Starts(may_sleep=False, clock=clock)
    assert starts.news is None
    starts.note("a", "compiling 1 of 5")
    starts.note("b", "loading the model")
    starts.note("c", "loading the model")
    assert starts.news == "compiling 1 of 5, loading the model"
    clock.now += START_NEWS_S
    starts.note("a", "compiling 2 of 5")
    clock.now += 2.5 * START_NEWS_S
    assert starts.news == "compiling 2 of 5"
    clock.now += START_NEWS_S
    assert starts.news is None
