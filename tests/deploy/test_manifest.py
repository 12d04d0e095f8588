"""deploy.yaml keeps what it promises, and to what it depends on elsewhere."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import ray
import yaml

import serve_app
from serve_app.app import shutdown_s
from serve_app.config import ModelConfig
from serve_app.serve import ENVIRONMENT
from tests.deploy.manifest import ROOT, Manifest, container, environment, parse

SCHEMA = yaml.safe_load((ROOT / "tests" / "deploy" / "schema.yaml").read_text())
SETTINGS_OF_A_CHECKPOINT = {"path", "revision", "variant", "config_path", "preview_path", "vae_path"}


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return parse((ROOT / "deploy.yaml").read_text())


def faults(service: dict[str, Any]) -> list[str]:
    return [error.json_path for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(service)]


def test_it_has_the_form_that_the_operator_reads(manifest: Manifest) -> None:
    assert faults(manifest.service) == []


def typed(service: dict[str, Any]) -> None:
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def misspelt(service: dict[str, Any]) -> None:
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"


def incomplete(service: dict[str, Any]) -> None:
    del service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplicas"]


def unlimited(service: dict[str, Any]) -> None:
    del service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["resources"][
        "limits"
    ]


def writable(service: dict[str, Any]) -> None:
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["securityContext"]["readOnlyRootFilesystem"] = False


@pytest.mark.parametrize("change", [typed, misspelt, incomplete, unlimited, writable])
def test_the_form_shows_mistakes(manifest: Manifest, change: Callable[[dict[str, Any]], None]) -> None:
    service = copy.deepcopy(manifest.service)
    change(service)
    assert len(faults(service)) == 1


def test_it_serves_the_gpu_config_and_what_only_a_cluster_has(manifest: Manifest) -> None:
    config = yaml.safe_load(manifest.service["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    assert {deployment["name"] for deployment in application.pop("deployments")} == {"Ingress", "Replica"}
    assert application["args"].pop("ingress_replicas") == 2
    assert application["args"].pop("auth") == {"keys_file": "/etc/parallel-sdxl/keys"}
    assert config == yaml.safe_load((ROOT / "configs" / "sdxl.yaml").read_text())


def test_its_versions_are_those_installed(manifest: Manifest) -> None:
    assert manifest.cluster["rayVersion"] == ray.__version__
    images = {
        c["image"] for pod in manifest.pods.values() for c in (*pod["containers"], *pod.get("initContainers", []))
    }
    assert images == {f"parallel-sdxl:{serve_app.__version__}"}


def test_ingresses_have_nodes_of_their_own_and_the_head_has_none(manifest: Manifest) -> None:
    """Ray gives each node's resource to one ingress, and Kubernetes spreads the group's pods."""
    (ingress,) = [d for d in manifest.application["deployments"] if d["name"] == "Ingress"]
    assert ingress["ray_actor_options"]["resources"] == {"ingress": 1}
    resources = {
        name: json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
        for name, group in manifest.groups.items()
    }
    assert resources == {"head": {}, "ingress": {"ingress": 1}, "gpu": {}}
    group = manifest.groups["ingress"]
    assert group["minReplicas"] == manifest.args.ingress_replicas
    assert group["maxReplicas"] == 2 * manifest.args.ingress_replicas, "new ones start beside the old ones"
    (spread,) = manifest.pods["ingress"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == group["template"]["metadata"]["labels"]
    assert manifest.groups["head"]["rayStartParams"]["num-cpus"] == "0"


def test_there_is_a_gpu_for_every_replica_between_the_bounds(manifest: Manifest) -> None:
    group, args = manifest.groups["gpu"], manifest.args
    (replicas,) = [d["num_replicas"] for d in manifest.application["deployments"] if d["name"] == "Replica"]
    assert replicas == args.num_replicas == group["replicas"]
    assert group["minReplicas"] < args.num_replicas < group["maxReplicas"]
    limits = container(manifest.pods["gpu"])["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) == args.num_gpus
    assert float(limits["cpu"]) >= args.num_cpus
    assert manifest.cluster["enableInTreeAutoscaling"] is True


def test_a_pod_that_is_told_to_end_lets_its_replicas_finish(manifest: Manifest) -> None:
    """Ray kills what runs on a node when its drain is over, Kubernetes when the grace period is."""
    longest = shutdown_s(manifest.args)
    for pod in manifest.pods.values():
        drain_s = float(environment(container(pod))["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert drain_s > longest, "what a replica may take"
        assert pod["terminationGracePeriodSeconds"] >= drain_s + 10, "and for Ray to end"
    assert manifest.service["spec"]["rayClusterDeletionDelaySeconds"] > longest, "so does the cluster that is replaced"


def test_a_new_image_makes_a_new_cluster(manifest: Manifest) -> None:
    assert manifest.service["spec"]["upgradeStrategy"] == {"type": "NewCluster"}


def test_processes_start_in_the_environment_of_the_start_command(manifest: Manifest) -> None:
    """Serve's controller, on the head, reads all of it; Ray's processes on any pod how many heaps they have."""
    assert ENVIRONMENT.items() <= environment(container(manifest.pods["head"])).items()
    for pod in manifest.pods.values():
        assert environment(container(pod))["MALLOC_ARENA_MAX"] == ENVIRONMENT["MALLOC_ARENA_MAX"]


def test_compiled_kernels_outlive_a_pod(manifest: Manifest) -> None:
    pod = manifest.pods["gpu"]
    folder = str(manifest.args.engine.compile_cache).replace("~", "/home/ray")
    (mount,) = [m for m in container(pod)["volumeMounts"] if m["mountPath"] == folder]
    (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
    claim = manifest.named("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_what_the_model_needs_is_fetched_before_replicas_that_are_offline_start(manifest: Manifest) -> None:
    pod = manifest.pods["gpu"]
    (fetch,) = pod["initContainers"]
    served = manifest.args.model.model_dump(include=SETTINGS_OF_A_CHECKPOINT, exclude_none=True)
    assert dict(setting.split("=", 1) for setting in fetch["args"]) == served
    assert ModelConfig.model_fields.keys() >= SETTINGS_OF_A_CHECKPOINT
    assert environment(container(pod))["HF_HUB_OFFLINE"] == "1"
    assert environment(container(pod))["HF_HOME"] == environment(fetch)["HF_HOME"]
    for of in (fetch, container(pod)):
        assert {"name": "models", "mountPath": environment(fetch)["HF_HOME"]} in of["volumeMounts"]


def test_keys_come_from_a_secret_to_the_ingress_and_to_the_head_which_checks_them_first(manifest: Manifest) -> None:
    for name in ("ingress", "head"):
        pod = manifest.pods[name]
        (mount,) = [m for m in container(pod)["volumeMounts"] if m["name"] == "keys"]
        (volume,) = [v for v in pod["volumes"] if v["name"] == "keys"]
        (item,) = volume["secret"]["items"]
        assert f"{mount['mountPath']}/{item['path']}" == manifest.args.auth.keys_file
    assert not [v for v in manifest.pods["gpu"]["volumes"] if "secret" in v]


def test_a_root_that_is_read_only_has_room_where_something_writes(manifest: Manifest) -> None:
    for pod in manifest.pods.values():
        for of in (*pod["containers"], *pod.get("initContainers", [])):
            volumes = {v["name"]: v for v in pod["volumes"]}
            mounts = {m["mountPath"]: volumes[m["name"]] for m in of["volumeMounts"]}
            assert {"/tmp", "/home/ray"} <= mounts.keys()  # noqa: S108 - Ray's own folder
            if of["name"] != "fetch":
                assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"  # noqa: S108


def test_the_cluster_remembers_and_asks_for_a_token(manifest: Manifest) -> None:
    assert manifest.cluster["authOptions"] == {"mode": "token"}
    address, port = manifest.cluster["gcsFaultToleranceOptions"]["redisAddress"].split(":")
    service = manifest.named("Service", address)
    redis = manifest.named("StatefulSet", address)["spec"]["template"]
    assert service["spec"]["selector"].items() <= redis["metadata"]["labels"].items()
    assert int(port) == service["spec"]["ports"][0]["port"]
    (password,) = redis["spec"]["containers"][0]["env"]
    assert password["valueFrom"] == manifest.cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]


def selected(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
    )


def reachable(manifest: Manifest, part: str) -> Iterator[tuple[str, int | None]]:
    """Yield who may reach which port of a part: the policies that select it, added up."""
    labels = {"app": "parallel-sdxl", "part": part}
    for policy in manifest.of_kind("NetworkPolicy"):
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        if not selected(policy["spec"]["podSelector"], labels):
            continue
        for rule in policy["spec"]["ingress"]:
            peers = [",".join(peer["podSelector"]["matchLabels"].values()) for peer in rule.get("from", [])]
            for peer in peers or ["anyone"]:
                for port in rule.get("ports", [{"port": None}]):
                    yield peer, port["port"]


@pytest.mark.parametrize(
    ("part", "open_to"),
    [
        ("head", {("kuberay-operator", 8265), ("kuberay-operator", 8000), ("prometheus", 8080)}),
        ("ingress", {("anyone", 8000), ("prometheus", 8080)}),
        ("gpu", {("anyone", 8000), ("prometheus", 8080)}),
        ("redis", set()),
    ],
)
def test_the_network_reaches_nothing_but_the_service(
    manifest: Manifest, part: str, open_to: set[tuple[str, int]]
) -> None:
    assert set(reachable(manifest, part)) == open_to | {("parallel-sdxl", None)}


def test_drains_leave_an_ingress_and_a_gpu_and_are_never_stuck(manifest: Manifest) -> None:
    budgets = {
        tuple(b["spec"]["selector"]["matchLabels"].values()): b["spec"] for b in manifest.of_kind("PodDisruptionBudget")
    }
    assert budgets.keys() == {("parallel-sdxl", "ingress"), ("parallel-sdxl", "gpu")}
    for (_, part), budget in budgets.items():
        # A share or maxUnavailable would need a controller that Kubernetes knows, which Ray's pods have not.
        assert budget["minAvailable"] < manifest.groups[part]["minReplicas"]
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_prometheus_finds_every_pod_with_metrics(manifest: Manifest) -> None:
    (monitor,) = manifest.of_kind("PodMonitor")
    for group in manifest.groups.values():
        assert selected(monitor["spec"]["selector"], group["template"]["metadata"]["labels"])
        ports = {p["name"]: p["containerPort"] for p in container(group["template"]["spec"])["ports"]}
        assert ports["metrics"] == 8080
        assert ports["serve"] == 8000
    assert [e["port"] for e in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
