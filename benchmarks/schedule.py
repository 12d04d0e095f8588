"""Runs each subject in its own process on its own GPUs and cores, and collects the results."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import Job, read, wanted
from benchmarks.conditions import Conditions
from benchmarks.measures import Measure, Result, Subject

_POLL_S = 0.2
_STOP_S = 45.0


@dataclass
class Running:
    job: Job
    devices: tuple[int, ...]
    process: "subprocess.Popen[bytes]"


def run_phases(
    phases: Sequence[Sequence[Subject]], conditions: Conditions, only: tuple[str, ...], deadline: float, out: Path
) -> list[Result]:
    """Run the phases one after another; return a result for each selected measure, or why it is missing."""
    results = []
    for phase in phases:
        chosen = [subject for subject in phase if any(wanted(trial.measures, only) for trial in subject.trials)]
        results += _run_phase(chosen, conditions, only, deadline, out)
    return results


def _run_phase(
    subjects: Sequence[Subject], conditions: Conditions, only: tuple[str, ...], deadline: float, out: Path
) -> list[Result]:
    free, waiting, running, results = list(conditions.devices), deque(subjects), list[Running](), list[Result]()
    try:
        while waiting or running:
            while waiting and (waiting[0].devices or len(conditions.devices)) <= len(free):
                subject = waiting.popleft()
                if time.time() + subject.seconds > deadline:
                    results += _not_run(subject, only, "no time left")
                    continue
                devices = tuple(free.pop(0) for _ in range(subject.devices or len(conditions.devices)))
                running.append(_start(subject, conditions, devices, only, deadline, out))
            if waiting and not running:
                results += _not_run(waiting.popleft(), only, f"needs more than {len(conditions.devices)} GPUs")
            if time.time() > deadline:
                _stop(running)
            for done in [r for r in running if r.process.poll() is not None]:
                running.remove(done)
                free = sorted([*free, *done.devices])
                results += read(done.job.results)
            time.sleep(_POLL_S)
    finally:
        _stop(running)
    return results


def _start(
    subject: Subject,
    conditions: Conditions,
    devices: tuple[int, ...],
    only: tuple[str, ...],
    deadline: float,
    out: Path,
) -> Running:
    job = Job(
        subject=subject.name,
        conditions=conditions.model_copy(update={"devices": devices}),
        only=only,
        deadline=deadline,
        cores=_cores(conditions, devices),
        results=out / f"{subject.name}.jsonl",
    )
    path = out / f"{subject.name}.job.json"
    path.write_text(job.model_dump_json(indent=1))
    job.results.unlink(missing_ok=True)
    visible = {} if conditions.cpu else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}
    print(f"{time.strftime('%H:%M:%S')} {subject.name} on {len(devices)} device(s)", flush=True)
    with (out / f"{subject.name}.log").open("w") as log:
        command = [sys.executable, "-m", "benchmarks.child", str(path)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **visible})  # noqa: S603, our own module
    return Running(job, devices, process)


def _cores(conditions: Conditions, devices: tuple[int, ...]) -> tuple[int, ...]:
    """Return an equal share of the machine's cores for each device, so that subjects do not slow each other."""
    cores, places = sorted(os.sched_getaffinity(0)), conditions.devices
    share = len(cores) // len(places)
    return tuple(core for device in devices for core in cores[places.index(device) * share :][:share]) or tuple(cores)


def _stop(running: Sequence[Running]) -> None:
    """End the processes of subjects, which then end what they have started, all at the same time."""
    for one in running:
        one.process.terminate()
    end = time.monotonic() + _STOP_S
    for one in running:
        try:
            one.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()


def _not_run(subject: Subject, only: tuple[str, ...], why: str) -> list[Result]:
    measures: list[Measure] = [m for trial in subject.trials if wanted(trial.measures, only) for m in trial.measures]
    return [Result(name=measure.name, devices=0, missing=why) for measure in measures]
