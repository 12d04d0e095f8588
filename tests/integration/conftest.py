"""A real Ray with real Serve over HTTP, on two replicas of the tiny model."""

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import psutil
import pytest
import ray
from diffusers import StableDiffusionXLPipeline
from ray import serve
from ray.cluster_utils import Cluster as RayCluster
from ray.serve import RunTarget

from benchmarks.ports import free_port
from serve_app.config import (
    AdaptersConfig,
    AdmissionConfig,
    AppArgs,
    EngineConfig,
    FilesConfig,
    LimitsConfig,
    ModelConfig,
    PreviewConfig,
    StreamsConfig,
)
from serve_app.fanout.pool import POLL_INTERVAL_S
from serve_app.forks import worker
from serve_app.forks.server import MODULES, fork_server
from serve_app.messages import ReplicaStatus
from serve_app.serve import ENVIRONMENT
from tests.conftest import pipeline
from tests.integration.paced import UNET_EVERY, build
from tests.quiet_ray import QUIET
from tests.random_lora import save_lora

APP = "test"
KEY = "right"
REPLICAS = 2
MIN_INTERVAL_S = 0.1
PAIR = "pair"
KEEP_S = 6.0
STALL_TIMEOUT_S = 5.0


@pytest.fixture(scope="session")
def stock(tiny_path: Path) -> StableDiffusionXLPipeline:
    """Of this folder's model: one that other folders share would be made with theirs or this one, as it comes."""
    return pipeline(tiny_path)


@dataclass(frozen=True)
class Cluster:
    url: str
    metrics_url: str


@pytest.fixture(scope="session")
def tiny_path(flat_path: Path) -> Path:
    """A model that takes less time than the tiny one, where it does not matter which."""
    return flat_path


@pytest.fixture(scope="package")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a Ray must find in its environment to have its workers forked."""
    environment = {**ENVIRONMENT, **QUIET}
    with fork_server(tmp_path_factory.mktemp("ray"), {**os.environ, **environment}, MODULES) as found:
        yield {**environment, **found}


# What runs ends with this folder's tests, and not with the session: idle, it takes a fifth of a processor.
@pytest.fixture(scope="package")
def cluster(forks: dict[str, str]) -> Iterator[Cluster]:
    port, metrics_port = free_port(), free_port()
    with patch.dict(os.environ, forks):
        own = RayCluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 8,  # more than the machine has: the tiny model's replicas hardly need one
                "include_dashboard": False,
                "dashboard_port": free_port(),  # checked even so
                "include_log_monitor": False,
                "no_monitor": True,
                "metrics_export_port": metrics_port,
                "setup_worker_path": worker.__file__,
                "_system_config": {"metrics_report_interval_ms": 2000},  # 10 s by default
            },
        )
        ray.init(address=own.address, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 60})
    yield Cluster(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics")
    ray.shutdown()  # Serve's own would wait for each replica to end in order
    own.shutdown()


@dataclass(frozen=True)
class Running:
    """The application under test, as its users and its operators see it."""

    url: str
    http: httpx2.Client
    metrics_url: str

    def generate(self, **body: Any) -> dict[str, Any]:
        response = self.http.post("/generate", json={"prompt": "a red apple", **SMALL, **body})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def stream(self, **body: Any) -> list[dict[str, Any]]:
        with self.http.stream("POST", "/stream", json={"prompt": "a red apple", **SMALL, **body}) as response:
            assert response.status_code == 200, response.read()
            return list(events_of(response.iter_lines()))

    def replicas(self) -> list[ReplicaStatus]:
        """Ask every replica itself."""
        answers: list[ReplicaStatus] = (
            serve.get_deployment_handle("Replica", APP).broadcast("status").results(timeout_s=10)
        )
        return answers

    def idle(self) -> bool:
        return all(r.active == 0 and r.waiting == 0 for r in self.replicas())

    def metrics_page(self) -> list[str]:
        return self.http.get(self.metrics_url).text.splitlines()

    def metric(self, name: str, **tags: str) -> float:
        """Return the sum of a metric's samples that carry the tags."""
        wanted = [f'{key}="{value}"' for key, value in tags.items()]
        lines = [line for line in self.metrics_page() if line.startswith(name + "{") and all(w in line for w in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


KEEP_EVERY = 3 * UNET_EVERY
SMALL = {"width": 64, "height": 64, "num_inference_steps": 4}


def events_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield a stream's events; each frame's name and its data's type must agree."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            assert event["type"] == name
            yield event


def eventually(condition: Callable[[], Any], seconds: float = 30, every: float = 0.05) -> None:
    """Wait until a condition holds; fail if it never does.

    The longer it has waited, the less often it asks: over HTTP that takes 15 ms of the processor each time. One that
    asks for metrics asks `every` second: each page takes half a second of it. One that asks over HTTP needs a client:
    `httpx2.get` makes one each time, which takes 25 ms more.
    """
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < seconds, "the condition never held"
        time.sleep(max(every, min(waited / 10, 0.5)))


def worker_logs() -> list[Path]:
    """Return what the processes of this test's own Ray have written to their standard error."""
    return list(Path(ray._private.worker._global_node.get_logs_dir_path()).glob("worker-*.err"))


def own_processes(title: str) -> list[psutil.Process]:
    """Return the processes of this test's own Ray with such a title; others on the machine may have the same."""
    return [p for p in psutil.Process().children(recursive=True) if title in _title(p)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def ready_throughout(http: httpx2.Client, seconds: float) -> bool:
    """Ask for the health again and again, and say whether all replicas were ready each time.

    Longer than POLL_INTERVAL_S, and all ingress replicas know of them, whichever have answered.
    """
    until = time.monotonic() + seconds
    healthy = True
    while healthy and time.monotonic() < until:
        response = http.get("/health")
        healthy = response.status_code == 200 and response.json()["replicas"]["ready"] == REPLICAS
        time.sleep(0.1)
    return healthy


def tiny_args(tiny_path: Path, **changes: Any) -> AppArgs:
    defaults = {
        "num_replicas": REPLICAS,
        "num_cpus": 1,
        "request_timeout_s": 50,
        "model": ModelConfig(path=str(tiny_path), name="tiny", width=64, height=64, max_size=256, guidance_scale=5.0),
        "engine": EngineConfig(max_batch_size=4, keep_every=KEEP_EVERY),
        "preview": PreviewConfig(min_interval_s=MIN_INTERVAL_S),
        "limits": LimitsConfig(max_images=16, max_steps=998),
        "admission": AdmissionConfig(max_waiting_images=16),
    }
    return AppArgs(**{**defaults, **changes})


@contextmanager
def running(cluster: Cluster, args: AppArgs) -> Iterator[Running]:
    """Deploy the application and wait until every replica is ready."""
    serve.run(build(args), name=APP, route_prefix="/")
    with httpx2.Client(base_url=cluster.url, timeout=60) as http:
        eventually(lambda: http.get("/health").json()["replicas"]["ready"] == args.num_replicas)
        yield Running(cluster.url, http, cluster.metrics_url)


@pytest.fixture(scope="session")
def adapters_path(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the LoRAs `a` and `b`."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("ab"):
        save_lora(tiny_path, folder / f"{name}.safetensors", seed)
    return folder


@pytest.fixture(scope="package")
def service(
    cluster: Cluster, tiny_path: Path, adapters_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The service most tests share; a test leaves it idle."""
    folder = tmp_path_factory.mktemp("files")
    adapters = AdaptersConfig(path=str(adapters_path))
    with running(cluster, tiny_args(tiny_path, files=FilesConfig(path=str(folder)), adapters=adapters)) as service:
        yield service


@pytest.fixture
def app(service: Running) -> Iterator[Running]:
    eventually(service.idle)
    yield service
    eventually(service.idle)


@pytest.fixture(scope="package")
def pair_args(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AppArgs:
    return tiny_args(
        tiny_path,
        ingress_replicas=2,
        engine=EngineConfig(
            max_batch_size=2,
            stall_timeout_s=STALL_TIMEOUT_S,
            scorers={"words": "tests.integration.paced:words"},
        ),
        files=FilesConfig(path=str(tmp_path_factory.mktemp("files"))),
        admission=AdmissionConfig(max_waiting_images=64),  # each has half of it, and one may get all of a test's
        streams=StreamsConfig(keep_s=KEEP_S),
    )


def deploy_pair(args: AppArgs) -> None:
    serve.run_many([RunTarget(build(args), name=PAIR, route_prefix=f"/{PAIR}")])


@pytest.fixture(scope="package")
def pair(cluster: Cluster, pair_args: AppArgs) -> str:
    """The URL of a service with two ingress replicas: each call may reach either."""
    deploy_pair(pair_args)
    url = f"{cluster.url}/{PAIR}"
    with httpx2.Client(base_url=url, timeout=60) as http:
        eventually(lambda: ready_throughout(http, seconds=1.5 * POLL_INTERVAL_S))
    return url


def let_go(name: str) -> None:
    """Delete an application without waiting until it is gone."""
    serve.delete(name, _blocking=False)


async def start_of(stream: AsyncIterator[dict[str, Any]]) -> str:
    """Return the id in a stream's start event."""
    async for event in stream:
        if event["type"] == "start":
            return str(event["id"])
    raise AssertionError("a stream has a start")


async def frames(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
