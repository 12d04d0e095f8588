"""A service on a Ray cluster of several raylets on this machine, and what can be seen of it from outside."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster

from benchmarks.ports import free_port
from serve_app.app import build
from serve_app.config import AppArgs
from serve_app.messages import ReplicaStatus

_APP = "soak"
_PARTS: Mapping[str, str] = {
    "replica": r"^ray::ServeReplica:.*:Replica",
    "ingress": r"^ray::ServeReplica:.*:Ingress",
    "proxy": r"^ray::ProxyActor",
    "controller": r"^ray::ServeController",
    "raylet": r"/raylet/raylet ",
}
"""Patterns for process titles."""


@dataclass(frozen=True)
class State:
    """What a service holds: images by state, bytes in the object store, bytes of each part's largest process."""

    active: int
    waiting: int
    object_store: float
    memory: Mapping[str, float]

    @property
    def idle(self) -> bool:
        return self.active == self.waiting == 0


@dataclass
class Service:
    """A running service, and the raylets that can be killed."""

    url: str
    cluster: Cluster
    workers: list[Any] = field(default_factory=list)

    def processes(self, part: str) -> list[psutil.Process]:
        return [p for p in psutil.Process().children(recursive=True) if re.search(_PARTS[part], _title(p))]

    def kill(self, part: str) -> None:
        """End the first process of a part, as the kernel does when memory runs out."""
        self.processes(part)[0].send_signal(signal.SIGKILL)

    def kill_node(self) -> None:
        """End a raylet with all that runs on it, and start another."""
        self.cluster.remove_node(self.workers.pop(), allow_graceful=False)
        self.add_node()

    def add_node(self) -> None:
        self.workers.append(self.cluster.add_node(num_cpus=2, resources={"worker": 1}))

    def replicas(self) -> list[ReplicaStatus]:
        answers = serve.get_deployment_handle("Replica", _APP).broadcast("status").results(timeout_s=10)
        return [answer for answer in answers if isinstance(answer, ReplicaStatus)]

    def state(self) -> State:
        replicas = self.replicas()
        memory = {
            part: max((_private(p) for p in self.processes(part)), default=0.0) for part in ("replica", "ingress")
        }
        total, free = (r.get("object_store_memory", 0.0) for r in (ray.cluster_resources(), ray.available_resources()))
        return State(sum(r.active for r in replicas), sum(r.waiting for r in replicas), total - free, memory)

    def tracebacks(self) -> list[str]:
        """Return the first lines of errors in the logs of Serve and the replicas."""
        found = []
        folder = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
        for path in (*folder.glob("serve/*.log"), *folder.glob("worker-*.err")):
            text = path.read_text(errors="replace")
            found += [f"{path.name}: {line[:300]}" for line in _errors(text)]
        return found


@contextmanager
def open_service(args: AppArgs) -> Iterator[Service]:
    """Run the service on a head and as many workers as it has replicas."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        port = free_port()
        service = Service(f"http://127.0.0.1:{port}", cluster)
        for _ in range(args.num_replicas):
            service.add_node()
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(args), name=_APP, route_prefix="/")
        wait_until(lambda: len(service.replicas()) == args.num_replicas, 120)
        yield service
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait until a condition holds; return the seconds. Raises TimeoutError."""
    started = time.monotonic()
    while not _holds(condition):
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"not so within {seconds:g} s")
        time.sleep(0.1)
    return time.monotonic() - started


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except Exception:  # Serve's own errors while parts of it are away
        return False


def _errors(text: str) -> list[str]:
    """Return what each traceback in a log ends with."""
    lines, inside, found = text.splitlines(), False, []
    for line in lines:
        if line.startswith("Traceback ("):
            inside = True
        elif inside and line and not line[0].isspace():
            found.append(line)
            inside = False
    return found


def _private(process: psutil.Process) -> float:
    """Return the memory that a process does not share, in bytes."""
    return float(process.memory_full_info().uss)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
