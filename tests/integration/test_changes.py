"""A deployed service changes while it serves: its settings, and how many replicas it has."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from tests.integration.conftest import SMALL, Cluster, events_of, eventually, tiny_args
from tests.integration.paced import hold_of

NAME = "changes"
BODY = {"prompt": "a", **SMALL}


@dataclass(frozen=True)
class Changing:
    """An application that is deployed as `serve deploy` does it, again and again."""

    url: str
    args: dict[str, Any]
    http: httpx2.Client
    name: str = NAME

    def deploy(self, **live: dict[str, Any]) -> None:
        """Deploy with such settings of the ingress, and return at once."""
        application = {
            "name": self.name,
            "route_prefix": f"/{self.name}",
            "import_path": "tests.integration.paced:build",
            "args": self.args,
            "deployments": [{"name": "Ingress", "user_config": live}] if live else [],
        }
        schema = ServeDeploySchema.model_validate({"applications": [application]})
        _get_global_client().deploy_apps(schema, _blocking=False)

    def health(self) -> dict[str, Any]:
        answer = self.http.get("/health")
        if answer.status_code in (200, 503) and answer.headers["content-type"] == "application/json":
            return dict(answer.json())
        return {"replicas": {}, "message": None}  # the proxy does not know this application yet

    def let_start(self) -> None:
        hold_of(self.args["model"]["path"]).unlink(missing_ok=True)

    def has(self, replicas: int) -> bool:
        return bool(self.health()["replicas"] == {"ready": replicas, "target": replicas})

    def asked_for(self, num_images: int) -> int:
        """Ask for so many images and return the status."""
        return self.http.post("/generate", json={**BODY, "num_images": num_images}).status_code


@pytest.fixture(scope="module")
def starting(cluster: Cluster, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    """One replica that has only begun to start, until it is let go on, and a second while it is needed."""
    model = Path(shutil.copytree(tiny_path, tmp_path_factory.mktemp(NAME) / "model"))
    hold_of(str(model)).touch()
    scaling = {"max_replicas": 2, "target_wait_s": 0.2, "upscale_delay_s": 0, "downscale_delay_s": 2}
    args = {**tiny_args(model, num_replicas=1).model_dump(mode="json", exclude_unset=True), "scaling": scaling}
    url = f"{cluster.url}/{NAME}"
    with httpx2.Client(base_url=url, timeout=60) as http:
        changing = Changing(url, args, http)
        changing.deploy(limits={"max_images": 2})
        eventually(lambda: "status" in changing.health(), 60)
        yield changing
    serve.delete(NAME)


@pytest.fixture
def changing(starting: Changing) -> Changing:
    starting.let_start()
    eventually(lambda: starting.has(1), 60)
    return starting


def replicas() -> set[str]:
    statuses = serve.get_deployment_handle("Replica", NAME).broadcast("status").results(timeout_s=10)
    return {status.id for status in statuses}


@contextmanager
def streaming(http: httpx2.Client, events: list[dict[str, Any]], **changes: Any) -> Iterator[None]:
    """Read a stream of two images of about a second while the context is open, to its end."""
    body = {**BODY, "num_inference_steps": 100, "num_images": 2, **changes}

    def read() -> None:
        with http.stream("POST", "/stream", json=body) as response:
            events.extend(events_of(response.iter_lines()))  # one by one, as they come

    reader = threading.Thread(target=read)
    reader.start()
    yield
    reader.join()


def test_health_answers_from_the_start_and_requests_are_refused_until_a_replica_is_ready(starting: Changing) -> None:
    answer = starting.http.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "starting")
    for route in ("/generate", "/stream"):
        refused = starting.http.post(route, json=BODY)
        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "not_ready")
    starting.let_start()
    eventually(lambda: starting.http.get("/health").status_code == 200, 60)
    assert starting.asked_for(1) == 200


def test_settings_of_the_ingress_change_without_a_restart(changing: Changing) -> None:
    assert changing.asked_for(3) == 422
    before = replicas()
    events: list[dict[str, Any]] = []
    with streaming(changing.http, events):
        changing.deploy(limits={"max_images": 3})
        eventually(lambda: changing.asked_for(3) == 200)
    assert [event["type"] for event in events].count("image") == 2
    assert events[-1]["type"] == "completed"

    changing.deploy(auth={"keys_file": "/no/such/keys"})
    eventually(lambda: changing.health()["message"])
    assert "/no/such/keys" in changing.health()["message"]
    assert (changing.asked_for(3), changing.asked_for(4)) == (200, 422)

    changing.deploy()
    eventually(lambda: changing.asked_for(4) == 200)
    assert changing.health()["message"] is None
    assert before <= replicas()


def test_replicas_follow_the_images(changing: Changing) -> None:
    stop, statuses = threading.Event(), list[int]()

    def ask() -> None:
        with httpx2.Client(base_url=changing.url, timeout=60) as http:
            while not stop.is_set():
                body = {**BODY, "num_inference_steps": 60, "num_images": 4}
                statuses.append(http.post("/generate", json=body).status_code)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        eventually(lambda: changing.has(2), 60)
    finally:
        stop.set()
        for client in clients:
            client.join()
    eventually(lambda: changing.has(1), 30)
    assert set(statuses) == {200}


def test_it_falls_asleep_and_a_request_wakes_it(changing: Changing) -> None:
    """And what is paused while another ingress takes the place of this one ends with a reason."""
    events: list[dict[str, Any]] = []
    with streaming(changing.http, events, num_inference_steps=4, pause_after=2):
        eventually(lambda: [event["type"] for event in events].count("paused") == 2)
        changing.args["scaling"] |= {"min_replicas": 0}
        changing.deploy()
    assert [event["error"]["type"] for event in events[-3:]] == ["shutting_down"] * 3, events[-1]
    assert [event["type"] for event in events[-3:]] == ["failed", "failed", "error"]
    eventually(lambda: changing.health().get("status") == "asleep", 60)
    assert changing.http.get("/health").status_code == 200
    refused = list[httpx2.Response]()

    def answered() -> bool:
        response = changing.http.post("/generate", json={**BODY, "num_images": 1})
        if response.status_code != 200:
            refused.append(response)
        return response.status_code == 200

    eventually(answered, 60)
    assert {response.status_code for response in refused} == {503}
    assert all(1 <= int(response.headers["Retry-After"]) <= 60 for response in refused)
    assert changing.health()["status"] == "ready"
