"""The tables of metrics, and what Prometheus and Grafana are told to do with them."""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve import metrics as ray_metrics

from serve_app.metrics import IMAGES, INGRESS, REPLICA, REQUESTS, Kind, Metric, Metrics
from tests.programs import program

CONFIGS = Path(__file__).parents[1] / "configs"
RULES: list[dict[str, Any]] = yaml.safe_load((CONFIGS / "prometheus" / "rules.yaml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((CONFIGS / "grafana" / "parallel-sdxl.json").read_text())
DOCS = (CONFIGS.parent / "docs" / "monitoring.md").read_text()
TABLE = [*INGRESS, *REPLICA]
BY_SERIES = {series: metric for metric in TABLE for series in metric.exported}
OF_RAY = {"application", "deployment", "replica", "ray_io_cluster", "le"}
"""Labels that Serve, KubeRay and histograms add."""

EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    },
    **{
        variable["name"]: variable["definition"]
        for variable in DASHBOARD["templating"]["list"]
        if "definition" in variable
    },
}


def series_in(expression: str) -> list[tuple[str, str]]:
    """Return each of our series in an expression, with its selector."""
    return re.findall(r"(ray_\w+)(?:\{([^}]*)\})?", re.sub(r"ray_io_cluster", "cluster", expression))


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_every_expression_asks_for_series_and_labels_that_exist(expression: str) -> None:
    asked = series_in(expression)
    assert asked
    for series, selector in asked:
        assert series in BY_SERIES
        for label, value in re.findall(r'(\w+)[=!]~?"([^"]*)"', selector.replace("cluster", "ray_io_cluster")):
            assert label in OF_RAY | set(BY_SERIES[series].tags)
            assert is_known(BY_SERIES[series], label, value), f"{label}={value}"


def is_known(metric: Metric, label: str, value: str) -> bool:
    """Return whether a label can have these values, as far as they are known beforehand."""
    if value.startswith("$") or label not in metric.labels or not metric.starts:
        return True
    known = {values[metric.labels.index(label)] for values in metric.starts}
    return set(value.split("|")) <= known


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_labels_to_group_by_exist(expression: str) -> None:
    labels = {label for series, _ in series_in(expression) for label in BY_SERIES[series].tags}
    for groups in re.findall(r"(?:by|on|ignoring) \(([^)]*)\)", expression):
        assert set(groups.split(", ")) <= labels | OF_RAY


def test_every_metric_is_shown_or_alerted_on() -> None:
    asked = {BY_SERIES[series].name for expression in EXPRESSIONS.values() for series, _ in series_in(expression)}
    assert {metric.name for metric in TABLE} - asked == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: Mapping[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "action"}


def test_every_panel_has_a_place_of_its_own_and_says_what_it_shows() -> None:
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & places
        assert max(x for x, _ in cells) < 24
        places |= cells
        assert panel["description"]
    assert max(y for _, y in places) < 30, "one screen"


def test_prometheus_accepts_the_rules_and_every_panel(tmp_path: Path) -> None:
    """Panels are checked as rules that record them."""
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    recorded = [{"record": "a", "labels": {"n": str(n)}, "expr": concrete(query)} for n, query in enumerate(queries)]
    panels = tmp_path / "panels.yaml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    checked = subprocess.run(
        [program("prometheus", "promtool"), "check", "rules", str(CONFIGS / "prometheus" / "rules.yaml"), str(panels)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def concrete(query: str) -> str:
    return re.sub(r"\$\w+", ".*", query.replace("$__rate_interval", "1m"))


def test_names_follow_the_customs_of_prometheus() -> None:
    assert len(BY_SERIES) == sum(len(metric.exported) for metric in TABLE), "each name once"
    for metric in TABLE:
        assert re.fullmatch(r"[a-z_]+", metric.name)
        assert not metric.name.endswith("_total"), "Ray adds it"
        assert metric.help.endswith(".")
        if metric.kind is Kind.HISTOGRAM:
            assert metric.name.endswith("_seconds")
            assert list(metric.buckets) == sorted(set(metric.buckets))
        for unit in ("seconds", "bytes"):
            assert (unit in metric.name) <= (unit in metric.help.lower())


def test_every_metric_is_documented() -> None:
    rows = [line for line in DOCS.splitlines() if line.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert documented == {metric.name + "_total" * (metric.kind is Kind.COUNTER) for metric in TABLE}


def test_counters_start_at_0(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, float, dict[str, str]]] = []

    def record(counter: ray_metrics.Counter, value: float, tags: dict[str, str]) -> None:
        started.append((counter.info["name"], value, tags))

    monkeypatch.setattr(ray_metrics.Counter, "_record", record)
    Metrics(INGRESS)
    assert ("psdxl_images", 0, {"outcome": "failed", "reason": "out_of_memory", "model": ""}) in started
    assert ("psdxl_requests", 0, {"route": "/stream", "outcome": "left"}) in started
    assert {name for name, _, _ in started} == {
        f"psdxl_{metric.name}" for metric in INGRESS if metric.kind is Kind.COUNTER and metric.starts
    }


def test_what_is_counted_for_a_model_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, str]] = []
    started: list[dict[str, str]] = []
    monkeypatch.setattr(ray_metrics.Counter, "inc", lambda _, amount, labels: told.append(labels))
    monkeypatch.setattr(ray_metrics.Counter, "_record", lambda _, amount, tags: started.append(tags))
    counted = Metrics(INGRESS, ["a", "b"])
    counted.labelled(model="b").add(IMAGES, outcome="succeeded", reason="")
    counted.add(REQUESTS, route="/generate", outcome="succeeded")
    assert told == [
        {"model": "b", "outcome": "succeeded", "reason": ""},
        {"route": "/generate", "outcome": "succeeded"},
    ]
    lost = [{"reason": "lost", "model": name} for name in ("a", "b")]
    assert all(one in started for one in lost)
