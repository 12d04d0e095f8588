"""A service on a Ray cluster of several raylets on this machine, and what can be seen of it from outside."""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import httpx2
import psutil
import ray
from ray import serve
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster
from ray.serve.handle import DeploymentHandle

from benchmarks.ports import free_port
from benchmarks.soak.witness import Census, build
from serve_app.config import AppArgs
from serve_app.messages import ReplicaStatus
from serve_app.serve import ENVIRONMENT

_HEALTHY_IN_A_ROW = 6
"""Several ingress replicas take turns, and each must know that all is well."""


class Part(Enum):
    REPLICA = "replica"
    INGRESS = "ingress"
    PROXY = "proxy"
    CONTROLLER = "controller"
    RAYLET = "raylet"


Process = tuple[Part, int]
"""A process of the service by its id."""


_WEIGHED = (Part.REPLICA, Part.INGRESS, Part.PROXY, Part.CONTROLLER)
"""Whose memory counts. A raylet has 15 MB and keeps some megabytes of what its workers told it."""


@dataclass(frozen=True)
class State:
    """What a service holds: unfinished images, objects in Ray's stores, what is in its processes, and their bytes."""

    images: int
    objects: int
    holds: Mapping[Process, Counter[str]]
    memory: Mapping[Process, float]

    def least(self, other: "State") -> "State":
        """Return what there was both times; what comes and goes, as polls do, is rarely there twice."""
        return State(
            images=min(self.images, other.images),
            objects=min(self.objects, other.objects),
            holds={process: held & other.holds.get(process, held) for process, held in self.holds.items()},
            memory=self.memory,
        )


@dataclass(frozen=True)
class Service:
    """A running service; with a cluster of its own, one of its raylets can be killed."""

    url: str
    app: str
    args: AppArgs
    cluster: Cluster | None = None

    def processes(self, part: Part) -> list[psutil.Process]:
        """Return the processes of a part, the oldest first."""
        pattern = {
            Part.REPLICA: rf"^ray::ServeReplica:{self.app}:Replica",
            Part.INGRESS: rf"^ray::ServeReplica:{self.app}:Ingress",
            Part.PROXY: r"^ray::ProxyActor",
            Part.CONTROLLER: r"^ray::ServeController",
            Part.RAYLET: r"/raylet/raylet ",
        }[part]
        found = [p for p in psutil.Process().children(recursive=True) if re.search(pattern, _title(p))]
        return sorted(found, key=psutil.Process.create_time)

    def pids(self) -> dict[Part, frozenset[int]]:
        return {part: frozenset(process.pid for process in self.processes(part)) for part in Part}

    def victim(self, part: Part) -> psutil.Process:
        """Return the process to let die: on the node whose end would come next, else the youngest.

        So some of each part live throughout, and what they hold can be compared.
        """
        doomed = self._doomed().pid
        if part is Part.RAYLET:
            return self._doomed()
        return max(self.processes(part), key=lambda process: (process.ppid() == doomed, process.create_time()))

    def kill(self, victim: psutil.Process) -> frozenset[str]:
        """End a process as the kernel does when memory runs out; with a raylet goes whatever else its machine runs.

        Return the ids of the actors that die with it.
        """
        pids = {process.pid for process in (victim, *victim.children(recursive=True))}
        known = ray._private.state.actors() if ray.is_initialized() else {}
        actors = frozenset(id_ for id_, actor in known.items() if actor["Pid"] in pids)
        victim.kill()
        if self.cluster is not None:
            for node in [node for node in self.cluster.worker_nodes if _pid(node) == victim.pid]:
                self.cluster.remove_node(node, allow_graceful=False)
        return actors

    def add_node(self) -> None:
        """Start a raylet with room for one replica. Only the main thread may."""
        assert self.cluster is not None, "another's cluster stays as it is"
        self.cluster.add_node(num_cpus=1)

    def _doomed(self) -> psutil.Process:
        raylet = self.processes(Part.REPLICA)[-1].parent()
        assert raylet is not None, "raylets start their workers"
        return raylet

    @cached_property
    def _handles(self) -> Mapping[Part, DeploymentHandle]:
        names = {Part.REPLICA: "Replica", Part.INGRESS: "Ingress"}
        return {part: serve.get_deployment_handle(name, self.app) for part, name in names.items()}

    def replicas(self) -> list[ReplicaStatus]:
        answers: list[ReplicaStatus] = self._handles[Part.REPLICA].broadcast("status").results(timeout_s=10)
        return answers

    def ready(self) -> int:
        """Return how many replicas an ingress replica sees."""
        return int(httpx2.get(f"{self.url}/health", timeout=10, trust_env=False).json()["replicas"]["ready"])

    @property
    def whole(self) -> bool:
        """Whether all replicas of both kinds answer, and each ingress replica knows all of the others."""
        censuses = [len(self.censuses(part)) for part in self._handles]
        wanted = self.args.num_replicas
        return censuses == [wanted, self.args.ingress_replicas] and all(
            self.ready() == wanted for _ in range(_HEALTHY_IN_A_ROW)
        )

    @property
    def idle(self) -> bool:
        return sum(r.active + r.waiting for r in self.replicas()) == 0

    def state(self) -> State:
        holds = {(part, census.pid): census.holds for part in self._handles for census in self.censuses(part)}
        return State(
            images=sum(r.active + r.waiting for r in self.replicas()),
            objects=_objects({pid for _, pid in holds}),
            holds=holds,
            memory={(part, process.pid): _private(process) for part in _WEIGHED for process in self.processes(part)},
        )

    def censuses(self, part: Part) -> tuple[Census, ...]:
        """Ask each replica of one of the two kinds what it holds and what has happened to it."""
        return tuple(self._handles[part].broadcast("census").results(timeout_s=10))


@contextmanager
def open_service(args: AppArgs) -> Iterator[Service]:
    """Run the service on a head that has no replicas, and a worker for each replica."""
    os.environ.update(ENVIRONMENT, RAY_USAGE_STATS_ENABLED="0")
    # Else an ingress replica beside the proxy gets all requests, and another none.
    os.environ["RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        port = free_port()
        service = Service(f"http://127.0.0.1:{port}", "soak", args, cluster)
        for _ in range(args.num_replicas):
            service.add_node()
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(args), name=service.app, route_prefix="/")
        wait_until(lambda: service.whole, 120)
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


def _objects(pids: Set[int]) -> int:
    """Return how many objects in Ray's stores these processes refer to; Serve's own are its controller's."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    replies = [node_stats(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in nodes]
    workers = [worker for reply in replies for worker in reply.core_workers_stats]
    return sum(worker.num_in_plasma for worker in workers if worker.pid in pids)


def _private(process: psutil.Process) -> float:
    """Return the memory that a process does not share, in bytes; none if it has just ended."""
    with suppress(psutil.NoSuchProcess):
        return float(process.memory_full_info().uss)
    return 0.0


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _pid(node: Any) -> int:
    """Return the id of a node's raylet process."""
    return int(node.all_processes["raylet"][0].process.pid)
