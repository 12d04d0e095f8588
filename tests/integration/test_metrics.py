"""The service's own metrics, on Ray's endpoint."""

import pytest

from tests.integration.conftest import Running, eventually

REPLICA_METRICS = (
    "ray_psdxl_step_seconds_count",
    "ray_psdxl_batch_occupancy",
    "ray_psdxl_images_active",
    "ray_psdxl_images_waiting",
    "ray_psdxl_preview_seconds_count",
    "ray_psdxl_encode_seconds_count",
)


def test_images_are_counted_by_outcome(app: Running) -> None:
    before = app.metric("ray_psdxl_images_total", outcome="succeeded")
    app.generate(num_images=3)
    eventually(lambda: app.metric("ray_psdxl_images_total", outcome="succeeded") >= before + 3)


@pytest.mark.parametrize("name", REPLICA_METRICS)
def test_replica_metrics_are_exported(app: Running, name: str) -> None:
    app.stream(num_images=2)
    eventually(
        lambda: any(line.startswith(name + "{") and 'deployment="Replica"' in line for line in app.metrics_page())
    )


def test_queued_images_are_measured(app: Running) -> None:
    app.generate(num_images=1)
    eventually(lambda: any(line.startswith("ray_psdxl_images_queued{") for line in app.metrics_page()))


def test_the_time_to_the_first_preview_is_measured(app: Running) -> None:
    before = app.metric("ray_psdxl_first_preview_seconds_count")
    app.stream(num_images=2)
    eventually(lambda: app.metric("ray_psdxl_first_preview_seconds_count") > before)
