import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview, DeploymentStatusTrigger, ReplicaState

from serve_app.config import AppArgs
from serve_app.fanout.deployed import Deployed, ask_serve, deployed_of
from serve_app.fanout.models import Models
from serve_app.fanout.starts import Starts
from tests.fakes import FakePool, Metrics, NoPeers, OneModel
from tests.ingress.conftest import ARGS

WELL = DeploymentStatusOverview(
    status=DeploymentStatus.HEALTHY,
    status_trigger=DeploymentStatusTrigger.CONFIG_UPDATE_COMPLETED,
    replica_states={ReplicaState.RUNNING: 2, ReplicaState.STARTING: 1, ReplicaState.STOPPING: 4},
    message="",
)


def test_counts_the_replicas_that_serve_wants() -> None:
    ingress = replace(WELL, replica_states={ReplicaState.RUNNING: 2})
    assert deployed_of(WELL, ingress) == Deployed(replicas=3, ingresses=2)


@pytest.mark.parametrize(
    ("status", "states", "asleep"),
    [
        (DeploymentStatus.HEALTHY, {}, True),
        (DeploymentStatus.DOWNSCALING, {ReplicaState.STOPPING: 1}, True),
        (DeploymentStatus.UPSCALING, {ReplicaState.STARTING: 1}, False),
        (DeploymentStatus.UPDATING, {}, False),
        (DeploymentStatus.DEPLOY_FAILED, {}, False),
    ],
)
def test_it_is_asleep_where_serve_wants_no_replicas_and_nothing_is_wrong(
    status: DeploymentStatus, states: dict[ReplicaState, int], asleep: bool
) -> None:
    assert deployed_of(replace(WELL, status=status, replica_states=states), WELL).asleep is asleep


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (DeploymentStatus.HEALTHY, None),
        (DeploymentStatus.UPSCALING, None),
        (DeploymentStatus.UPDATING, "no such model"),
        (DeploymentStatus.DEPLOY_FAILED, "no such model"),
        (DeploymentStatus.UNHEALTHY, "no such model"),
    ],
)
def test_says_what_keeps_replicas_from_running(status: DeploymentStatus, trouble: str | None) -> None:
    assert deployed_of(replace(WELL, status=status, message="no such model\n"), WELL).trouble == trouble


def test_of_a_traceback_the_error_is_said() -> None:
    message = 'The replica failed to start:\nTraceback (most recent call last):\n  File "x", line 1\nValueError: why\n'
    failed = replace(WELL, status=DeploymentStatus.UPDATING, message=message)
    assert deployed_of(failed, WELL).trouble == "ValueError: why"


def test_a_long_message_is_cut() -> None:
    trouble = deployed_of(replace(WELL, status=DeploymentStatus.UPDATING, message="x" * 9999), WELL).trouble
    assert trouble == "x" * 500


@pytest.mark.parametrize(
    ("applications", "said"),
    [
        ({"own": ("Ingress", "Replica-a", "Replica-b")}, {"Replica-a", "Replica-b"}),
        ({"own": ("Ingress", "Replica-a")}, {"Replica-a"}),
        ({"own": ("Replica-a",)}, set()),
        ({"another": ("Ingress", "Replica-a")}, set()),
    ],
)
async def test_of_what_has_ended_nothing_is_said(
    applications: dict[str, tuple[str, ...]],
    said: set[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the end of a service its replicas are gone before its ingress."""
    status = {name: SimpleNamespace(deployments=dict.fromkeys(each, WELL)) for name, each in applications.items()}
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="own", deployment="Ingress"))
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=status))
    assert set(await ask_serve(["Replica-a", "Replica-b"])) == said
    assert caplog.text == ""


async def test_a_controller_that_does_not_answer_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RayServeException("no controller")

    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="own", deployment="Ingress"))
    monkeypatch.setattr(serve, "status", fail)
    assert await ask_serve(["Replica"]) == {}
    assert "no controller" in caplog.text


def test_the_health_says_what_serve_says() -> None:
    pool = FakePool()
    service = OneModel(pool, ARGS, Metrics())
    assert service.health().replicas.target == ARGS.num_replicas
    pool.deployed = Deployed(replicas=0, ingresses=1, trouble="no GPU is free")
    assert service.health().replicas.target == 0
    assert service.health().message == "no GPU is free"
    service.note_start("another model's", "def", "loading the model")
    service.note_start(pool.deployment, "abc", "compiling 2 of 5")
    assert service.health().message == "compiling 2 of 5; no GPU is free"
    pool.starts = Starts(may_sleep=False)
    service.refuse_settings("limits.max_images: wrong")
    assert "limits.max_images: wrong" in str(service.health().message)
    service.reconfigure(ARGS)
    assert service.health().message == "no GPU is free"


def test_the_queue_is_shared_with_the_ingress_replicas_there_are() -> None:
    pool = FakePool()
    args = ARGS.changed({"limits": {"max_images": 1}, "admission": {"max_waiting_images": 10}})
    service = OneModel(pool, args, Metrics())
    assert service._admission.max_waiting == 10
    pool.deployed = Deployed(replicas=2, ingresses=5)
    service._look(frozenset())
    assert service._admission.max_waiting == 2


class Controller(NoPeers):
    """Serve's, which says of every deployment what it wants; of `lost` it says nothing."""

    def __init__(self, *lost: str) -> None:
        self.asked: list[list[str]] = []
        self.lost = lost

    async def deployed(self, replicas: Iterable[str]) -> Mapping[str, Deployed]:
        self.asked.append(list(replicas))
        return {name: Deployed(replicas=len(name), trouble=name) for name in self.asked[-1] if name not in self.lost}


async def test_serve_is_asked_once_for_all_models() -> None:
    pools = {"a": FakePool(name="Replica-a"), "bb": FakePool(name="Replica-bb")}
    controller, args = Controller(), AppArgs(models={"a": {}, "bb": {}}, default_model="a")
    service = Models(pools, controller, args, Metrics())
    async with service.running():
        await asyncio.sleep(0)
    assert controller.asked == [["Replica-a", "Replica-bb"]]
    assert {name: one.message for name, one in service.health().models.items()} == {
        "a": "Replica-a",
        "bb": "Replica-bb",
    }


async def test_where_serve_does_not_answer_what_it_said_last_holds() -> None:
    pool = FakePool(name="Replica", deployed=Deployed(replicas=7))
    service = OneModel(pool, ARGS, Metrics(), Controller("Replica"))
    async with service.running():
        await asyncio.sleep(0)
    assert service.health().replicas.target == 7
