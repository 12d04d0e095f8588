from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

import serve_app
from serve_app.app import shutdown_s
from serve_app.config import AppArgs
from serve_app.serve import ENVIRONMENT

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "deploy.yaml").read_text())
    return document


def test_it_serves_the_gpu_config(service: dict[str, Any]) -> None:
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == yaml.safe_load(
        (ROOT / "configs" / "sdxl.yaml").read_text()
    )


def test_its_versions_are_those_installed(service: dict[str, Any]) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {c["image"] for group in groups for c in group["template"]["spec"]["containers"]}
    assert images == {f"parallel-sdxl:{serve_app.__version__}"}


def test_there_is_a_gpu_for_every_replica_and_time_to_finish(service: dict[str, Any]) -> None:
    args = AppArgs.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"])
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    (container,) = pod["containers"]
    assert workers["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"]) == args.num_replicas
    assert float(container["resources"]["limits"]["cpu"]) >= args.num_cpus


def test_a_pod_that_is_told_to_end_lets_its_replicas_finish(service: dict[str, Any]) -> None:
    """Ray kills what runs on a node when its drain is over, Kubernetes when the grace period is."""
    args = AppArgs.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"])
    cluster = service["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        drain_s = {v["name"]: v["value"] for v in container["env"]}["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
        assert isinstance(drain_s, str), "Kubernetes takes nothing else"
        assert float(drain_s) > shutdown_s(args), "what a replica may take"
        assert pod["terminationGracePeriodSeconds"] >= float(drain_s) + 10, "and for Ray to end"


def test_processes_start_in_the_environment_of_the_start_command(service: dict[str, Any]) -> None:
    """Serve's controller, on the head, reads the first of it; ingress replicas, which run anywhere, the second."""
    cluster = service["spec"]["rayClusterConfig"]
    head, workers = (
        {v["name"]: v["value"] for v in group["template"]["spec"]["containers"][0]["env"]}
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    )
    assert ENVIRONMENT.items() <= head.items()
    assert workers["MALLOC_ARENA_MAX"] == ENVIRONMENT["MALLOC_ARENA_MAX"]


def test_compiled_kernels_outlive_a_pod(service: dict[str, Any]) -> None:
    args = AppArgs.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"])
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    (mount,) = [
        m
        for m in pod["containers"][0]["volumeMounts"]
        if m["mountPath"] == str(args.engine.compile_cache).replace("~", "/home/ray")
    ]
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    assert "persistentVolumeClaim" in volume


def test_start_parameters_are_strings(service: dict[str, Any]) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
