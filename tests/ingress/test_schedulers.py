"""Which schedulers the served model takes, told before anybody asks for one."""

from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import product
from unittest.mock import Mock

import pytest
from starlette.testclient import TestClient

from serve_app.fanout.sight import PoolStatus
from serve_app.recipe import SchedulerName
from serve_app.samplers import SAMPLERS, SCHEDULES
from tests.fakes import REPLICA, FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, client_of

TAKEN: tuple[SchedulerName, ...] = ("ddpm", "euler", "lcm")


def pool_with(*schedulers: SchedulerName) -> FakePool:
    replicas = (replace(REPLICA, schedulers=schedulers),) if schedulers else ()
    return FakePool(status=PoolStatus(replicas, images_per_second=1.0))


def client_with(pool: FakePool) -> AbstractContextManager[TestClient]:
    return client_of(OneModel(pool, ARGS, Metrics()), ARGS)


def test_what_is_listed_is_served_and_nothing_else() -> None:
    with client_with(pool_with(*TAKEN)) as client:
        listed = client.get("/schedulers").json()
        assert [(each["name"], each["said"], each["default"]) for each in listed] == [
            ("ddpm", "DDPM", False),
            ("euler", "Euler", True),
            ("lcm", "LCM", False),
        ]
        offered = {(each["name"], schedule) for each in listed for schedule in (None, *each["sigma_schedules"])}
        served = {
            (name, schedule)
            for name, schedule in product(SAMPLERS, (None, *SCHEDULES))
            if client.post(
                "/generate", json={"prompt": "a", "num_images": 1, "scheduler": name, "sigma_schedule": schedule}
            ).is_success
        }
    assert offered == served


def test_a1111s_clients_are_offered_them_alone() -> None:
    with client_with(pool_with(*TAKEN)) as client:
        assert [each["name"] for each in client.get("/sdapi/v1/samplers").json()] == ["Euler", "DDPM", "LCM"]


@pytest.mark.parametrize(("path", "status"), [("/schedulers", 503), ("/sdapi/v1/samplers", 200)])
def test_before_a_model_is_loaded_nobody_knows_and_nothing_is_woken(
    monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    pool, woken = pool_with(), Mock()
    monkeypatch.setattr(pool, "_wake", woken)
    with client_with(pool) as client:
        answer = client.get(path)
    assert answer.status_code == status
    assert not woken.called
    assert status == 503 or len(answer.json()) == len(SAMPLERS)
