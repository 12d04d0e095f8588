"""Slots spread: every time, to every replica."""

import pytest

from tests.integration.conftest import Running, eventually


def finished(app: Running) -> list[int]:
    return sorted(r.finished for r in app.replicas())


@pytest.mark.parametrize("route", ["generate", "stream"])
def test_n_images_on_n_idle_replicas_go_one_to_each(app: Running, route: str) -> None:
    for _ in range(25):
        before = finished(app)
        getattr(app, route)(num_images=2, num_inference_steps=1)
        assert finished(app) == [count + 1 for count in before]


def test_many_images_spread_evenly(app: Running) -> None:
    for _ in range(3):
        before = finished(app)
        app.generate(num_images=16, num_inference_steps=2)
        assert finished(app) == [count + 8 for count in before]
    eventually(app.idle)
