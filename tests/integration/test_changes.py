"""A deployed service changes while it serves: its settings, and how many replicas it has."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from tests.integration.conftest import SMALL, Cluster, events_of, eventually, tiny_args

NAME = "changes"
BODY = {"prompt": "a", **SMALL}


def deploy(args: dict[str, Any], **deployments: dict[str, Any]) -> None:
    """Deploy as `serve deploy` does, and return at once."""
    application = {
        "name": NAME,
        "route_prefix": f"/{NAME}",
        "import_path": "tests.integration.paced:build",
        "args": args,
        "deployments": [{"name": name, **options} for name, options in deployments.items()],
    }
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}), _blocking=False)


@pytest.fixture
def http(cluster: Cluster) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"{cluster.url}/{NAME}", timeout=60) as http:
        yield http
    serve.delete(NAME)


def health(http: httpx2.Client) -> dict[str, Any]:
    answer = http.get("/health")
    return answer.json() if answer.status_code in (200, 503) else {"replicas": {}, "message": None}


def replicas() -> set[str]:
    statuses = serve.get_deployment_handle("Replica", NAME).broadcast("status").results(timeout_s=10)
    return {status.id for status in statuses}


@contextmanager
def streaming(http: httpx2.Client, events: list[dict[str, Any]]) -> Iterator[None]:
    """Read a stream of two images of about a second while the context is open, to its end."""

    def read() -> None:
        with http.stream("POST", "/stream", json={**BODY, "num_inference_steps": 100, "num_images": 2}) as response:
            events.extend(events_of(response.iter_lines()))

    reader = threading.Thread(target=read)
    reader.start()
    yield
    reader.join()


def test_settings_of_the_ingress_change_without_a_restart(
    cluster: Cluster, http: httpx2.Client, tiny_path: Path
) -> None:
    args = tiny_args(tiny_path).model_dump(mode="json", exclude_unset=True)  # two replicas

    def deploy_with(**live: dict[str, Any]) -> None:
        deploy(args, Replica={"num_replicas": 1}, Ingress={"user_config": live})

    deploy_with(limits={"max_images": 2})
    eventually(lambda: health(http)["replicas"] == {"ready": 1, "target": 1}, 60)  # what Serve wants, not the args
    assert http.post("/generate", json={**BODY, "num_images": 3}).status_code == 422
    before, events = replicas(), []
    with streaming(http, events):
        deploy_with(limits={"max_images": 3})
        eventually(lambda: http.post("/generate", json={**BODY, "num_images": 3}).status_code == 200)
    assert [event["type"] for event in events].count("image") == 2
    assert events[-1]["type"] == "completed"

    deploy_with(auth={"keys_file": "/no/such/keys"})
    eventually(lambda: health(http)["message"])
    assert "/no/such/keys" in health(http)["message"]
    assert http.post("/generate", json={**BODY, "num_images": 3}).status_code == 200
    assert http.post("/generate", json={**BODY, "num_images": 4}).status_code == 422

    deploy(args, Replica={"num_replicas": 1})
    eventually(lambda: http.post("/generate", json={**BODY, "num_images": 4}).status_code == 200)
    assert health(http)["message"] is None
    assert replicas() == before


def test_replicas_follow_the_images(cluster: Cluster, http: httpx2.Client, tiny_path: Path) -> None:
    scaling = {"max_replicas": 2, "target_wait_s": 2, "upscale_delay_s": 0, "downscale_delay_s": 2}
    args = {**tiny_args(tiny_path, num_replicas=1).model_dump(mode="json", exclude_unset=True), "scaling": scaling}
    deploy(args)
    eventually(lambda: health(http)["replicas"].get("ready") == 1, 60)
    stop, statuses = threading.Event(), []

    def ask() -> None:
        with httpx2.Client(base_url=f"{cluster.url}/{NAME}", timeout=60) as own:
            while not stop.is_set():
                body = {**BODY, "num_inference_steps": 60, "num_images": 4}
                statuses.append(own.post("/generate", json=body).status_code)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    eventually(lambda: health(http)["replicas"] == {"ready": 2, "target": 2}, 60)
    stop.set()
    for client in clients:
        client.join()
    eventually(lambda: health(http)["replicas"] == {"ready": 1, "target": 1}, 30)
    assert set(statuses) == {200}
