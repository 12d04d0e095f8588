"""Measures: names, goals, samples."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from statistics import linear_regression
from typing import Any, Literal

from benchmarks.conditions import Conditions, Frozen

Unit = Literal["s", "ms", "images/s", "%", "x", "cores"]
Samples = Mapping[str, Sequence[float]]
"""Measured values by the name of their measure."""

LOAD_S = 60.0
"""Time to open a subject, with kernels in the cache."""


@dataclass(frozen=True)
class Goal:
    """The project's targets. If `aim` is below `must`, less is better."""

    must: float
    aim: float

    def verdict(self, value: float) -> Literal["aim", "must", "missed"]:
        sign = 1 if self.aim <= self.must else -1
        if sign * value <= sign * self.aim:
            return "aim"
        return "must" if sign * value <= sign * self.must else "missed"


@dataclass(frozen=True)
class Measure:
    """One row of the table. `how` describes one sample."""

    name: str
    unit: Unit
    how: str
    goal: Goal | None = None


@dataclass(frozen=True)
class Trial:
    """Takes samples of several measures together, because they are compared or come from one run.

    `seconds` is the most it takes on the intended machine. It does not start if less time is left.
    """

    measures: tuple[Measure, ...]
    run: Callable[[Any, Conditions], Samples]
    seconds: float


@dataclass(frozen=True)
class Subject:
    """Something to measure, in its own process on `devices` GPUs (0: all).

    `open` yields the argument of the trials' `run`, warmed up, after at most `seconds`.
    """

    name: str
    open: Callable[[Conditions], AbstractContextManager[Any]]
    devices: int
    seconds: float
    trials: tuple[Trial, ...]
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """A row that divides the median of one measure by that of another.

    With `per_device`, each is first divided by its number of devices.
    """

    measure: Measure
    of: str
    to: str
    per_device: bool = False


@dataclass(frozen=True)
class Best:
    """A row that is the highest median of some measures."""

    measure: Measure
    of: tuple[str, ...]


@dataclass(frozen=True)
class PerDevice:
    """A row that is the median of one measure divided by its number of devices."""

    measure: Measure
    of: str


Derived = Ratio | Best | PerDevice


class Result(Frozen):
    """The result of a measure: samples, or the reason why there are none."""

    name: str
    devices: int
    samples: tuple[float, ...] = ()
    missing: str | None = None


def rounds(seconds: float, least: int = 3) -> Iterator[int]:
    """Count rounds until the time is up, but at least `least`."""
    end, done = time.perf_counter() + seconds, 0
    while done < least or time.perf_counter() < end:
        yield done
        done += 1


def timed(act: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def rate(finished: Sequence[float], warm_up: int) -> list[float]:
    """Return completions per second by least squares, without the first `warm_up`; empty if too few are left.

    `finished` are times in order. Answers come in bunches, so a rate from only the first and the last answer would
    depend on where the bunches are cut.
    """
    steady = finished[warm_up:]
    return [linear_regression(steady, range(len(steady))).slope] if len(set(steady)) > 1 else []


def rates(finished: Sequence[float], warm_up: int, window: int) -> list[float]:
    """Return completions per second over successive windows of `window` completions, without the first `warm_up`.

    `finished` are times in order. Batches end in bunches: a window should contain whole bunches.
    """
    marks = finished[warm_up::window]
    return [window / (after - before) for before, after in pairwise(marks) if after > before]
