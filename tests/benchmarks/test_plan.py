"""The whole plan on the CPU, with the tiny model: what is opened, taken and closed, not how fast it is."""

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.child import Job, read, run
from benchmarks.conditions import TINY, TINY_OVERRIDES, Conditions
from benchmarks.measures import Best, PerDevice, Ratio, Subject
from benchmarks.plan import DERIVED, PHASES
from benchmarks.report import rows
from benchmarks.subjects.engine import ENGINE, ENGINE_512, ENGINE_FEW, ENGINE_FP8
from benchmarks.subjects.peers import STOCK, STOCK_BF16
from tests.quiet_ray import QUIET

IN_PROCESS = (ENGINE, ENGINE_512, ENGINE_FEW, ENGINE_FP8, STOCK, STOCK_BF16)


@pytest.fixture
def conditions(tiny_path: Path) -> Conditions:
    torch.set_num_threads(1)
    return Conditions(
        checkpoint=tiny_path,
        devices=(0,),
        cpu=True,
        overrides=TINY_OVERRIDES,
        workload=TINY.model_copy(update={"steps": 2}),
    )


def job(subject: Subject, conditions: Conditions, folder: Path, seconds: float = 1e6) -> Job:
    return Job(
        subject=subject.name,
        conditions=conditions,
        only=(),
        deadline=time.time() + seconds,
        cores=(0,),
        results=folder / f"{subject.name}.jsonl",
    )


@pytest.mark.parametrize("subject", IN_PROCESS, ids=lambda subject: subject.name)
def test_every_measure_has_samples(subject: Subject, conditions: Conditions, tmp_path: Path) -> None:
    # 512 pixels are many for a test.
    small = (
        tuple("model." + side + "=64" for side in ("width", "height")) if subject is ENGINE_512 else subject.overrides
    )
    given = job(subject, conditions, tmp_path)
    run(Subject(subject.name, subject.open, subject.devices, subject.seconds, subject.trials, small), given)
    results = {result.name: result for result in read(given.results)}
    assert set(results) == {measure.name for trial in subject.trials for measure in trial.measures}
    missing = {name: result.missing for name, result in results.items() if result.missing}
    assert missing == ({"engine.idle": "RuntimeError: needs a GPU"} if subject is ENGINE else {})


def test_what_does_not_fit_into_the_time_left_says_so(conditions: Conditions, tmp_path: Path) -> None:
    given = job(STOCK, conditions, tmp_path, seconds=18)  # enough for one trial alone
    run(STOCK, given)
    assert {result.name: result.missing for result in read(given.results)} == {
        "stock.image": "no time left",
        "stock.batch4": "no time left",
        "stock.few": None,
    }


@pytest.mark.timeout(600)
def test_the_deployed_service_and_the_peers_that_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    gpu.main(
        ["--tiny", "--gpus", "1", "--out", str(tmp_path), "--only", "service.*", "--only", "fal.*", "--only", "ray.*"]
    )
    made = {row["measure"]["name"]: row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    wanted = {m.name for phase in PHASES[2:] for subject in phase for trial in subject.trials for m in trial.measures}
    assert wanted <= set(made)
    for name in wanted:
        if name.startswith("fal."):
            assert made[name]["missing"].startswith("not installed"), made[name]
        else:
            assert made[name]["value"] is not None, made[name]
    assert "service.first_preview" in capsys.readouterr().out


def test_derived_rows_are_made_of_measures_that_exist() -> None:
    names = {m.name for phase in PHASES for subject in phase for trial in subject.trials for m in trial.measures}
    for derived in DERIVED:
        match derived:
            case Best(of=parts):
                assert set(parts) <= names
            case PerDevice(of=part):
                assert part in names
            case Ratio(of=of, to=to):
                assert {of, to} <= names
    assert rows(PHASES, DERIVED, []) == []
