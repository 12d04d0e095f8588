"""The process of one subject: `python -m benchmarks.child JOB.json`.

A subject that crashes, hangs or cannot be imported does not affect the others.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.conditions import Conditions, Frozen
from benchmarks.measures import Measure, Result, Subject
from benchmarks.plan import PHASES


class Job(Frozen):
    """The job of a subject's process. `deadline` is a Unix time; `only` are patterns for names of measures."""

    subject: str
    conditions: Conditions
    only: tuple[str, ...]
    deadline: float
    cores: tuple[int, ...]
    results: Path


def main() -> None:
    signal.signal(signal.SIGTERM, _end)
    job = Job.model_validate_json(Path(sys.argv[1]).read_text())
    os.sched_setaffinity(0, job.cores)
    run(next(subject for phase in PHASES for subject in phase if subject.name == job.subject), job)


def run(subject: Subject, job: Job) -> None:
    """Run the trials of a subject and write each result at once."""
    conditions = job.conditions.with_overrides(*subject.overrides)
    trials = [trial for trial in subject.trials if wanted(trial.measures, job.only)]
    missing = "not reached"
    try:
        with subject.open(conditions) as opened:
            for trial in trials:
                _write(job, _take(trial.run, trial.measures, opened, conditions, trial.seconds, job.deadline))
    except ImportError as error:
        missing = f"not installed: {error}"
    except Exception as error:
        traceback.print_exc()
        missing = _line(error)
    except SystemExit:
        missing = "stopped: no time left"
    done = {result.name for result in read(job.results)}
    _write(job, _missing([m for trial in trials for m in trial.measures if m.name not in done], conditions, missing))


def wanted(measures: Iterable[Measure], only: tuple[str, ...]) -> bool:
    return not only or any(fnmatch(measure.name, pattern) for measure in measures for pattern in only)


def read(path: Path) -> list[Result]:
    return [Result.model_validate_json(line) for line in path.read_text().splitlines()] if path.exists() else []


def _take(
    run: Any, measures: tuple[Measure, ...], opened: Any, conditions: Conditions, seconds: float, deadline: float
) -> list[Result]:
    if time.time() + seconds > deadline:
        return _missing(measures, conditions, "no time left")
    try:
        samples = run(opened, conditions)
    except Exception as error:
        traceback.print_exc()
        return _missing(measures, conditions, _line(error))
    devices = len(conditions.devices)
    return [
        Result(
            name=m.name,
            devices=devices,
            samples=tuple(samples[m.name]),
            missing=None if samples[m.name] else "no samples",
        )
        for m in measures
    ]


def _missing(measures: Iterable[Measure], conditions: Conditions, why: str) -> list[Result]:
    return [Result(name=measure.name, devices=len(conditions.devices), missing=why) for measure in measures]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _write(job: Job, results: list[Result]) -> None:
    with job.results.open("a") as file:
        file.writelines(result.model_dump_json() + "\n" for result in results)


def _end(*_: object) -> NoReturn:
    sys.exit(1)


if __name__ == "__main__":
    main()
