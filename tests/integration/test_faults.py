"""What happens when parts of the service die or freeze, or all of it is busy."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import ray
from PIL import Image
from ray import serve
from ray.serve._private.common import DeploymentID

from serve_app.fanout.broadcast import TIMEOUT_S
from tests.integration.conftest import (
    APP,
    KEEP_EVERY,
    REPLICAS,
    SMALL,
    Running,
    events_of,
    eventually,
    own_processes,
    ready_throughout,
)
from tests.integration.test_generate import png_of


def replica_actors() -> list[ray.actor.ActorHandle]:
    controller = serve.context._global_client._controller
    infos = ray.get(controller._all_running_replicas.remote())
    return [info.get_actor_handle() for info in infos[DeploymentID(name="Replica", app_name=APP)]]


SEEDS: dict[str, Any] = {"num_images": 2, "seed": 70, "num_inference_steps": 80}
PICTURE = {"init_image": png_of(Image.effect_mandelbrot((64, 64), (-3, -2.5, 2, 2.5), 100)), "strength": 1.0}
ASKED: Mapping[str, dict[str, Any]] = {"generate": SEEDS, "stream": SEEDS | PICTURE}

Pictures = dict[str, dict[int, str]]
"""By route and seed."""


@pytest.fixture(scope="module")
def whole(service: Running) -> Pictures:
    """The pictures of two seeds by both routes, where nothing happens to a replica."""
    return {
        route: {image["seed"]: image["b64_json"] for image in service.generate(**body)["images"]}
        for route, body in ASKED.items()
    }


@contextmanager
def asked_for(app: Running) -> Iterator[Pictures]:
    """Ask for the two seeds by both routes, and go on when each replica generates one for each; give what comes back.

    On the way out the answers are there.
    """
    pictures: Pictures = {}

    def ask(route: str) -> None:
        answer = getattr(app, route)(**ASKED[route])
        images = answer["images"] if route == "generate" else [e for e in answer if e["type"] == "image"]
        pictures[route] = {image["seed"]: image["b64_json"] for image in images}

    requests = [threading.Thread(target=ask, args=(route,)) for route in ASKED]
    for request in requests:
        request.start()
    eventually(lambda: [r.active for r in app.replicas()] == [2, 2])
    yield pictures
    for request in requests:
        request.join(timeout=25)
        assert not request.is_alive(), "it does not wait for Serve's health check"


def test_a_replica_that_dies_takes_no_image_with_it(app: Running, whole: Pictures) -> None:
    with asked_for(app) as pictures:
        ray.kill(replica_actors()[0])
    assert pictures == whole, "the same pictures as if nothing had happened"
    eventually(lambda: app.http.get("/health").json()["replicas"]["ready"] == REPLICAS)


def test_images_go_on_from_the_steps_that_were_kept(app: Running) -> None:
    """Both replicas are busy with one image; one dies in the second half of it."""
    body = {"prompt": "a red apple", **SMALL, "seeds": [70, 71], "num_inference_steps": 300, "preview_every": 0}
    whole = {image["seed"]: image["b64_json"] for image in app.generate(**body)["images"]}
    steps: dict[int, list[int]] = {0: [], 1: []}
    pictures: dict[int, str] = {}
    killed = False
    with app.http.stream("POST", "/stream", json=body, timeout=60) as response:
        for event in events_of(response.iter_lines()):
            if event["type"] == "progress":
                steps[event["index"]].append(event["step"])
            assert event["type"] not in ("failed", "error"), event
            if event["type"] == "image":
                pictures[event["seed"]] = event["b64_json"]
            if not killed and all(told and told[-1] >= 2 * KEEP_EVERY for told in steps.values()):
                ray.kill(replica_actors()[0])
                killed = True
    assert pictures == whole
    assert killed
    for told in steps.values():
        drops = [before - after for before, after in pairwise(told)]
        assert max(drops) <= KEEP_EVERY, "it did not begin anew"
    eventually(lambda: app.http.get("/health").json()["replicas"]["ready"] == REPLICAS)


def test_the_images_on_a_replica_that_freezes_are_generated_elsewhere(app: Running, whole: Pictures) -> None:
    """A frozen process answers nobody; Serve's health check takes half a minute to see it."""
    frozen = own_processes(f"ServeReplica:{APP}:Replica")[0]
    try:
        with asked_for(app) as pictures:
            frozen.suspend()
        assert app.http.get("/health").json()["replicas"] == {"ready": REPLICAS - 1, "target": REPLICAS}
        assert len(app.generate(num_images=4)["images"]) == 4
    finally:
        frozen.resume()
    assert pictures == whole
    eventually(lambda: app.http.get("/health").json()["replicas"]["ready"] == REPLICAS)


def test_a_stream_starts_at_once_though_a_replica_hangs(app: Running) -> None:
    hung = own_processes(f"ServeReplica:{APP}:Replica")[0]
    hung.suspend()
    try:
        body = {"prompt": "a red apple " * 20, **SMALL, "num_images": 1}
        started = time.monotonic()
        with app.http.stream("POST", "/stream", json=body) as response:
            first = next(events_of(response.iter_lines()))
        assert first["type"] == "start"
        assert time.monotonic() - started < TIMEOUT_S, "nothing waits for what a broadcast may take"
    finally:
        hung.resume()


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
