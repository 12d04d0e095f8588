"""What happens when parts of the service die or are not there yet."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest
import ray
from ray import serve
from ray.serve import RunTarget

from serve_app.app import build
from serve_app.fanout.broadcast import TIMEOUT_S
from serve_app.fanout.pool import POLL_INTERVAL_S
from tests.integration.conftest import REPLICAS, SMALL, Cluster, Running, eventually, ready_throughout, tiny_args


def replica_actors() -> list[ray.actor.ActorHandle]:
    controller = serve.context._global_client._controller
    infos = ray.get(controller._all_running_replicas.remote())
    return [info.get_actor_handle() for id_, group in infos.items() if id_.name == "Replica" for info in group]


@pytest.mark.parametrize("route", ["generate", "stream"])
def test_a_replica_that_dies_takes_no_image_with_it(app: Running, route: str) -> None:
    whole = {
        image["seed"]: image["b64_json"]
        for image in app.generate(num_images=2, seed=70, num_inference_steps=300)["images"]
    }
    answers: list[object] = []
    request = threading.Thread(
        target=lambda: answers.append(getattr(app, route)(num_images=2, seed=70, num_inference_steps=300))
    )
    request.start()
    eventually(lambda: [r.active for r in app.replicas()] == [1, 1])
    ray.kill(replica_actors()[0])
    request.join(timeout=60)
    (answer,) = answers
    images = answer["images"] if isinstance(answer, dict) else [e for e in answer if e["type"] == "image"]  # type: ignore[attr-defined]
    assert {image["seed"]: image["b64_json"] for image in images} == whole, (
        "the same pictures as if nothing had happened"
    )
    eventually(lambda: app.http.get("/health").json()["replicas"]["ready"] == REPLICAS)


@pytest.mark.parametrize("route", ["generate", "stream"])
def test_the_images_on_a_replica_that_freezes_are_generated_elsewhere(app: Running, route: str) -> None:
    """A frozen process answers nobody; Serve's health check takes half a minute to see it."""
    body = {"num_images": 4, "seed": 70, "num_inference_steps": 100}
    whole = {image["seed"]: image["b64_json"] for image in app.generate(**body)["images"]}
    answers: list[object] = []
    request = threading.Thread(target=lambda: answers.append(getattr(app, route)(**body)))
    request.start()
    eventually(lambda: [r.active for r in app.replicas()] == [2, 2])
    # Of this test's own Ray: another one on the machine may run replicas of the same name.
    processes = psutil.Process().children(recursive=True)
    frozen = next(p for p in processes if "ServeReplica:test:Replica" in " ".join(p.cmdline()))
    frozen.suspend()
    try:
        request.join(timeout=25)
        assert not request.is_alive(), "it did not wait for Serve's health check"
        assert app.http.get("/health").json()["replicas"] == {"ready": REPLICAS - 1, "target": REPLICAS}
        assert len(app.generate(num_images=4)["images"]) == 4
    finally:
        frozen.resume()
    (answer,) = answers
    images = answer["images"] if isinstance(answer, dict) else [e for e in answer if e["type"] == "image"]  # type: ignore[attr-defined]
    assert {image["seed"]: image["b64_json"] for image in images} == whole
    eventually(lambda: app.http.get("/health").json()["replicas"]["ready"] == REPLICAS)


def test_health_answers_from_the_start_and_requests_are_refused_until_a_replica_is_ready(
    cluster: Cluster, tiny_path: Path
) -> None:
    target = RunTarget(build(tiny_args(tiny_path, num_replicas=1)), name="late", route_prefix="/late")
    serve.run_many([target], wait_for_applications_running=False)
    try:
        with httpx2.Client(base_url=f"{cluster.url}/late", timeout=60) as http:
            eventually(lambda: http.get("/health").headers["content-type"] == "application/json")
            starting = http.get("/health")
            assert (starting.status_code, starting.json()["status"]) == (503, "starting")
            for route in ("/generate", "/stream"):
                refused = http.post(route, json={"prompt": "a", **SMALL})
                assert (refused.status_code, refused.json()["error"]["type"]) == (503, "not_ready")
            eventually(lambda: http.get("/health").status_code == 200)
            assert http.post("/generate", json={"prompt": "a", **SMALL, "num_images": 1}).status_code == 200
    finally:
        serve.delete("late")


def test_too_many_images_are_turned_away_and_room_is_made_again(app: Running) -> None:
    """Eight are generated at once and sixteen may wait."""
    bodies = [{"prompt": "a", **SMALL, "num_images": 12, "num_inference_steps": 400}] * 2
    with (
        app.http.stream("POST", "/stream", json=bodies[0]) as first,
        app.http.stream("POST", "/stream", json=bodies[1]) as second,
    ):
        assert (first.status_code, second.status_code) == (200, 200)
        refused = app.http.post("/generate", json={"prompt": "a", **SMALL, "num_images": 1})
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "too_many_waiting")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert app.http.get("/status").json()["images_waiting"] == 16
        assert ready_throughout(app.http, seconds=2 * TIMEOUT_S), "a busy service is not a starting one"
    eventually(lambda: app.http.post("/generate", json={"prompt": "a", **SMALL, "num_images": 1}).status_code == 200)


def test_several_ingress_replicas_share_the_fleet(cluster: Cluster, tiny_path: Path) -> None:
    target = RunTarget(build(tiny_args(tiny_path, ingress_replicas=2)), name="shared", route_prefix="/shared")
    serve.run_many([target])
    try:
        with httpx2.Client(base_url=f"{cluster.url}/shared", timeout=60) as http:
            eventually(lambda: ready_throughout(http, seconds=1.5 * POLL_INTERVAL_S))
            with ThreadPoolExecutor(8) as pool:
                answers = list(
                    pool.map(
                        lambda _: http.post(
                            "/generate", json={"prompt": "a", **SMALL, "num_images": 4, "seed": 3}
                        ).json(),
                        range(8),
                    )
                )
        assert all("images" in answer for answer in answers), [
            answer["error"] for answer in answers if "error" in answer
        ]
        assert all(image["status"] == "succeeded" for answer in answers for image in answer["images"])
        assert len({image["b64_json"] for answer in answers for image in answer["images"]}) == 4, (
            "whoever took the request"
        )
        replicas = serve.get_deployment_handle("Replica", "shared").broadcast("status").results(timeout_s=10)
        assert sum(r.finished for r in replicas) == 8 * 4 + REPLICAS, "and a warm-up each"
        assert min(r.finished for r in replicas) >= 8, "both have had their part"
    finally:
        serve.delete("shared")
