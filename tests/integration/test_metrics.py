"""The service's own metrics, on Ray's endpoint."""

import subprocess

from serve_app.metrics import CAPACITY, GPU_MEMORY, INGRESS, REPLICA
from tests.integration.conftest import REPLICAS, Running, eventually
from tests.programs import program

SERIES = {series for metric in (*INGRESS, *REPLICA) if metric is not GPU_MEMORY for series in metric.exported}


def own_lines(app: Running) -> list[str]:
    """Return what the page says of our metrics, their help included."""
    return [line for line in app.metrics_page() if "ray_psdxl_" in line]


def has_the_whole_table(app: Running) -> bool:
    return {line.partition("{")[0] for line in own_lines(app) if line[0] != "#"} == SERIES


def test_the_page_has_the_whole_table(app: Running) -> None:
    before = app.metric("ray_psdxl_images_total", outcome="succeeded")
    app.stream(num_images=2)
    eventually(lambda: has_the_whole_table(app), every=1)
    eventually(lambda: app.metric("ray_psdxl_images_total", outcome="succeeded") == before + 2, every=1)
    assert app.metric("ray_psdxl_requests_total", route="/stream", outcome="succeeded") >= 1
    assert app.metric("ray_psdxl_stage_seconds_total", stage="unet") > 0
    assert app.metric("ray_psdxl_client_gpu_seconds_total", client="none") > 0
    assert app.metric(*CAPACITY.exported, deployment="Replica", application="test") == REPLICAS * 4
    never = [line for line in own_lines(app) if 'reason="breaks_replicas"' in line]
    assert {line.rsplit(" ", 1)[1] for line in never} == {"0.0"}, "counters start at 0"


def test_prometheus_accepts_the_page(app: Running) -> None:
    app.stream()
    eventually(lambda: has_the_whole_table(app), every=1)
    checked = subprocess.run(
        [program("prometheus", "promtool"), "check", "metrics"],
        input="\n".join(own_lines(app)) + "\n",
        capture_output=True,
        text=True,
    )
    faults = (checked.stdout + checked.stderr).splitlines()
    assert [fault for fault in faults if "'camelCase'" not in fault] == [], "such are Ray's own labels"
