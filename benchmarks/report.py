"""The results as a table and as JSON."""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from benchmarks.conditions import Conditions
from benchmarks.measures import Best, Derived, Measure, PerDevice, Ratio, Result, Subject

_PACKAGES = ("torch", "diffusers", "transformers", "ray")


@dataclass(frozen=True)
class Row:
    """A measure and its result: the median, 5th and 95th percentile of its samples."""

    measure: Measure
    value: float | None
    low: float | None = None
    high: float | None = None
    samples: int = 0
    devices: int = 0
    missing: str | None = None

    @property
    def verdict(self) -> str:
        if self.value is None or self.measure.goal is None:
            return ""
        return self.measure.goal.verdict(self.value)


def rows(phases: Iterable[Iterable[Subject]], derived: Iterable[Derived], results: Sequence[Result]) -> list[Row]:
    """Return the measured rows in the plan's order, then the rows derived from them."""
    by_name = {result.name: result for result in results}
    measures = [m for phase in phases for subject in phase for trial in subject.trials for m in trial.measures]
    measured = {m.name: _row(m, by_name[m.name]) for m in measures if m.name in by_name}
    return [*measured.values(), *(row for each in derived if (row := _derive(each, measured)))]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    lines = [f"{'measure':22} {'':52} {'median':>9} {'p5':>8} {'p95':>8} {'n':>4} {'unit':8} {'must':>6} {'aim':>6}"]
    for row in rows:
        name = f"{row.measure.name:22} {row.measure.how:52}"
        if row.value is None:
            lines.append(f"{name} {'-':>9} {row.missing}")
            continue
        goal = row.measure.goal
        wanted = f"{goal.must:6g} {goal.aim:6g}  {row.verdict}" if goal else ""
        lines.append(
            (
                f"{name} {row.value:9.3f} {_number(row.low)} {_number(row.high)} {row.samples or '':>4} "
                f"{row.measure.unit:8} {wanted}"
            ).rstrip()
        )
    return "\n".join(lines)


def document(rows: Sequence[Row], results: Sequence[Result], conditions: Conditions) -> dict[str, Any]:
    """Return everything: rows, all samples, and the conditions of the measurement."""
    return {
        "machine": {
            "python": platform.python_version(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "devices": len(conditions.devices),
            "packages": {name: version(name) for name in _PACKAGES},
        },
        "conditions": conditions.model_dump(mode="json"),
        "args": conditions.args().model_dump(mode="json"),
        "rows": [{**asdict(row), "verdict": row.verdict} for row in rows],
        "samples": {result.name: result.samples for result in results},
    }


def write(path: Path, rows: Sequence[Row], results: Sequence[Result], conditions: Conditions) -> None:
    path.write_text(json.dumps(document(rows, results, conditions), indent=1))


def _row(measure: Measure, result: Result) -> Row:
    if not result.samples:
        return Row(measure, None, missing=result.missing, devices=result.devices)
    low, high = _ends(result.samples)
    return Row(measure, median(result.samples), low, high, len(result.samples), result.devices)


def _ends(samples: Sequence[float]) -> tuple[float, float]:
    if len(samples) == 1:
        return samples[0], samples[0]
    cuts = quantiles(samples, n=20, method="inclusive")
    return cuts[0], cuts[-1]


def _derive(each: Derived, measured: dict[str, Row]) -> Row | None:
    """Return the row, or None if the measures it needs were not selected."""
    match each:
        case Best():
            values = [measured[name].value for name in each.of if name in measured]
            found = [value for value in values if value is not None]
            return Row(each.measure, max(found), samples=len(found)) if found else None
        case PerDevice():
            return _each(each, measured[each.of]) if each.of in measured else None
        case Ratio():
            return _ratio(each, measured[each.of], measured[each.to]) if {each.of, each.to} <= measured.keys() else None


def _each(each: PerDevice, of: Row) -> Row:
    return (
        Row(each.measure, None, missing=f"no {each.of}")
        if of.value is None
        else Row(each.measure, of.value / of.devices)
    )


def _ratio(ratio: Ratio, of: Row, to: Row) -> Row:
    if of.value is None or to.value is None:
        return Row(ratio.measure, None, missing=f"no {ratio.of if of.value is None else ratio.to}")
    scale = to.devices / of.devices if ratio.per_device else 1
    return Row(ratio.measure, of.value / to.value * scale)


def _number(value: float | None) -> str:
    return f"{value:8.3f}" if value is not None else " " * 8
