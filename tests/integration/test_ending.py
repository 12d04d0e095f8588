"""The service is told to end while it generates: every client gets a whole answer, late ones a refusal."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml

from benchmarks.ports import free_port
from serve_app.fanout.spans import STAGES
from serve_app.serve import ENVIRONMENT
from tests.integration import spans
from tests.integration.conftest import SMALL, events_of, eventually
from tests.quiet_ray import QUIET

LARGE = {"width": 256, "height": 256}
LONG, SHORT = 998, 15
"""Steps of an image that outlasts the grace, and of one that does not."""
GRACE_S = 8


@contextmanager
def service(tiny_path: Path, folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", httpx2.Client]]:
    """Run the service in a Ray of its own, as `python -m serve_app.serve` does; give its process and a client of it."""
    port, config = free_port(), folder / "config.yaml"
    args = {
        "num_replicas": 1,
        "model": {"path": str(tiny_path), "width": 64, "height": 64},
        "limits": {"max_steps": LONG},
    }
    app = {"name": "ending", "route_prefix": "/", "import_path": "tests.integration.paced:build", "args": args}
    config.write_text(
        yaml.safe_dump(
            {
                "proxy_location": "HeadOnly",
                "http_options": {"host": "127.0.0.1", "port": port},
                "tracing_config": {
                    "enabled": True,
                    "exporter_import_path": "tests.integration.spans:processors",
                    "sampling_ratio": 1.0,
                },
                "applications": [app],
            }
        )
    )
    command = [
        sys.executable,
        "-m",
        "serve_app.serve",
        str(config),
        "--no-dashboard",
        "--grace",
        str(GRACE_S),
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        **QUIET,
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        spans.FOLDER: str(folder),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as http:
            yield process, http
    finally:
        if process.poll() is None:
            process.terminate()
            process.terminate()
        process.wait(60)


def is_ready(http: httpx2.Client) -> bool:
    try:
        response = http.get("/health")
    except httpx2.TransportError:
        return False
    return response.status_code == 200 and bool(response.json()["replicas"]["ready"] == 1)


def processes_of(service: "subprocess.Popen[bytes]", name: str) -> list[psutil.Process]:
    """Return the processes below the service's own with this in their command lines."""
    found = []
    for process in psutil.Process(service.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # one that has ended meanwhile, or is about to
            if name in "".join(process.cmdline()):
                found.append(process)
    return found


def in_flight(http: httpx2.Client) -> int:
    return int(http.get("/status").json()["images_in_flight"])


Answers = dict[tuple[str, int], tuple[int, Any]]
"""Statuses and bodies, or a stream's events, by route and steps."""


def ask(url: str, route: str, steps: int, answers: Answers) -> None:
    body = {"prompt": "a", **(SMALL if steps == SHORT else LARGE), "num_images": 1, "num_inference_steps": steps}
    with httpx2.Client(base_url=url, timeout=60) as http:
        if route == "generate":
            response = http.post("/generate", json=body)
            answers[route, steps] = response.status_code, response.json()
        else:
            with http.stream("POST", "/stream", json=body) as response:
                answers[route, steps] = response.status_code, list(events_of(response.iter_lines()))


@contextmanager
def asked(url: str, steps: int, answers: Answers) -> Iterator[None]:
    """Ask for an image of so many steps by each route, and wait for the answers on the way out."""
    threads = [threading.Thread(target=ask, args=(url, route, steps, answers)) for route in ("generate", "stream")]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def test_no_answer_is_torn(tiny_path: Path, tmp_path: Path) -> None:
    answers: Answers = {}
    refused = {"prompt": "a", **SMALL, "num_images": 1}
    with service(tiny_path, tmp_path) as (process, http):
        url = str(http.base_url)
        eventually(lambda: is_ready(http), seconds=120)
        (raylet,) = processes_of(process, "raylet/raylet")  # it passes its environment on to all workers
        assert ENVIRONMENT.items() <= raylet.environ().items()
        assert processes_of(process, "ray-dashboard") == []
        beside = psutil.Process(process.pid).children()
        (forks,) = (child for child in beside if "serve_app.forks.server" in child.cmdline())
        assert {worker.ppid() for worker in processes_of(process, "ray::Serve")} == {forks.pid}
        assert "\nThis service has a Ray of its own;" in (tmp_path / "log").read_text()
        with asked(url, LONG, answers):
            eventually(lambda: in_flight(http) == 2)
            with asked(url, SHORT, answers):
                eventually(lambda: in_flight(http) == 4 or answers)
                process.send_signal(signal.SIGTERM)
                eventually(lambda: http.get("/health").json()["status"] == "stopping")
                late = http.post("/generate", json=refused)
        assert process.wait(60) == 0
    assert (late.status_code, late.json()["error"]["type"]) == (503, "shutting_down")
    assert int(late.headers["retry-after"]) > 0

    status, answer = answers["generate", SHORT]
    assert (status, [image["status"] for image in answer["images"]]) == (200, ["succeeded"])
    status, events = answers["stream", SHORT]
    assert (status, [event["type"] for event in events[-2:]]) == (200, ["image", "completed"])

    status, answer = answers["generate", LONG]
    assert (status, answer["error"]["type"]) == (503, "shutting_down"), "longer than the grace"
    status, events = answers["stream", LONG]
    assert (status, events[-1]["type"], events[-1]["error"]["type"]) == (200, "error", "shutting_down")

    _every_generation_is_traced(tmp_path, answer_id=answers["generate", SHORT][1]["id"])


def _every_generation_is_traced(folder: Path, answer_id: str) -> None:
    found = spans.read(folder)
    generations = [span for span in found if span.name == "generation"]
    assert len(generations) == 4
    assert all(span.parent_name(found) for span in generations), (
        "each belongs to the span that Serve has of its request"
    )
    (short,) = [span for span in generations if span.attributes["generation"] == answer_id]
    (image,) = short.children(found)
    assert [stage.name for stage in image.children(found)] == list(STAGES)
    assert short.start <= image.start
    assert image.end <= short.end
