"""`python -m benchmarks.cluster`: what happens to requests while a cluster is operated, as one table.

A head with the ingresses, worker raylets with a replica each, and Redis behind the GCS, all on this machine; the model
is tiny. Clients ask all the time while replicas are added and taken away, a node dies, the GCS restarts, limits and
weights change, and the service falls asleep and is woken. The run fails where a request or a picture was lost, or where
something restarted replicas that must not.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx2
from ray.cluster_utils import Cluster
from safetensors.torch import load_file, save_file

from benchmarks.ports import free_port
from benchmarks.soak.clients import Clients, Fate, Tally
from benchmarks.soak.cluster import Part, Service, wait_until
from benchmarks.soak.phases import bodies, say
from serve_app.config import AppArgs
from serve_app.models import tiny
from serve_app.serve import ENVIRONMENT

_NAME = "cluster"
_NODES, _SPARE = 3, 1
_BUSY, _CALM = 8, 1
"""Clients that need all nodes, and one that needs a single node: it asks for little, and not all the time."""

_PAUSE_S = 3.0

_AROUND_S = 2.0
"""How long clients ask before an event and after it has healed."""

_HEAL_S = 240.0
_IN_A_ROW = 6
"""Several ingress replicas take turns, and each must know."""

_COLUMNS = ("event", "sent", "answered", "refused", "lost", "5xx", "torn", "other pictures", "time to heal", "started")


@dataclass(frozen=True)
class Row:
    """An event, and what became of the requests around it; `started` are replicas that were not there before."""

    event: str
    tally: Tally
    healed_s: float | None
    started: int

    @property
    def cells(self) -> tuple[str, ...]:
        fates = self.tally.fates
        healed = "not" if self.healed_s is None else f"{self.healed_s:.1f} s"
        told = (Fate.ANSWERED, Fate.REFUSED, Fate.LOST, Fate.ERROR, Fate.TORN)
        numbers = (self.tally.sent, *(fates[fate] for fate in told), self.tally.wrong)
        return (self.event, *map(str, numbers), healed, str(self.started))

    def broken(self, may_start: int) -> list[str]:
        """Return what must not be: everything is answered, by pictures as they were, and few replicas start."""
        bad = [fate for fate in (Fate.LOST, Fate.ERROR, Fate.TORN) if self.tally.fates[fate]]
        broken = [f"{self.event}: {self.tally}; {self.tally.details[:3]}"] if bad or self.tally.wrong else []
        if self.healed_s is None:
            broken.append(f"{self.event}: not healed within {_HEAL_S:g} s")
        if self.started > may_start:
            broken.append(f"{self.event}: {self.started} replicas started, {may_start} may")
        return broken


@dataclass
class Operation:
    """Operates a service and watches its clients; `rows` and `broken` fill while it runs."""

    service: Service
    rest: str
    config: dict[str, Any]
    other_weights: Path
    rows: list[Row] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    async def run(self) -> None:
        self._clients, self._tally = Clients(self.service.url), Tally()
        await self._event("deployed by REST", 0, self._deploy, lambda: self._has(1), _NODES)
        await self._alone()
        await self._heal(lambda: self._has(1))  # on a slow machine one image at a time is work for more
        await self._event("1 to 3 replicas", _BUSY, lambda: None, lambda: self._has(_NODES), _NODES - 1)
        await self._event("a node dies, a spare is there", _BUSY, self._kill_node, self._healed_of_death, 1)
        await self._event("the GCS dies and restarts", _BUSY, self._restart_gcs, self._governed, 0)
        await self._event("a limit changes", _BUSY, self._change_limit, self._limited, 0)
        await self._event("other weights", _BUSY, self._change_weights, self._renewed, 2 * _NODES)
        await self._event("3 to 1 replicas", _CALM, lambda: None, lambda: self._has(1), _NODES - 1)
        for again in ("asleep, and woken", "asleep and woken again"):
            await self._heal(lambda: self._health()["status"] == "asleep")
            await self._event(again, _CALM, lambda: None, lambda: self._has(1), 1)

    async def _event(
        self, name: str, clients: int, act: Callable[[], None], healed: Callable[[], bool], may_start: int
    ) -> None:
        """Let so many clients ask while something happens, until it has healed."""
        tally, over, before = self._tally.fresh(), asyncio.Event(), self._replicas()
        crowd = asyncio.create_task(self._crowd(clients, tally, over))
        await asyncio.sleep(_AROUND_S)
        started, seen = time.monotonic(), set[int]()
        act()
        in_time = await self._heal(healed, seen)
        healed_s = time.monotonic() - started if in_time else None
        await asyncio.sleep(_AROUND_S)
        over.set()
        await crowd
        row = Row(name, tally, healed_s, len((seen | self._replicas()) - before))
        self.rows.append(row)
        self.broken += row.broken(may_start)
        say(name, f"{tally}; {row.cells[-2]}, {row.started} started")

    async def _crowd(self, clients: int, tally: Tally, over: asyncio.Event) -> None:
        turns, pause_s = cycle(bodies()), 0.0
        if clients == _CALM:
            turns, pause_s = cycle([{**bodies()[0], "num_images": 1}]), _PAUSE_S

        async def client() -> None:
            while not over.is_set():
                await self._clients.insist(next(turns), tally)
                await asyncio.sleep(pause_s)

        await asyncio.gather(*[client() for _ in range(clients)])

    async def _alone(self) -> None:
        """Generate every picture once, by itself: what all others of these weights are compared with."""
        for body in bodies():
            for index in range(body["num_images"]):
                alone = {**body, "seed": body["seed"] + index, "num_images": 1}
                await self._clients.insist(alone, self._tally)

    async def _heal(self, healed: Callable[[], bool], seen: set[int] | None = None) -> bool:
        """Wait until that is so, and note all replicas there have been meanwhile."""

        def look() -> bool:
            if seen is not None:
                seen.update(self._replicas())
            return healed()

        try:
            await asyncio.to_thread(wait_until, look, _HEAL_S)
        except TimeoutError:
            return False
        return True

    def _replicas(self) -> frozenset[int]:
        return frozenset(process.pid for process in self.service.processes(Part.REPLICA))

    def _health(self) -> dict[str, Any]:
        return dict(httpx2.get(f"{self.service.url}/health", timeout=10, trust_env=False).json())

    def _has(self, replicas: int) -> bool:
        wanted = {"ready": replicas, "target": replicas}
        return all(self._health()["replicas"] == wanted for _ in range(_IN_A_ROW))

    def _asked(self, **body: Any) -> httpx2.Response:
        small = {**bodies()[0], "num_images": 1, **body}
        return httpx2.post(f"{self.service.url}/generate", json=small, timeout=300, trust_env=False)

    def _deploy(self) -> None:
        httpx2.put(self.rest, json=self.config, timeout=60, trust_env=False).raise_for_status()

    def _kill_node(self) -> None:
        self._doomed = self.service.victim(Part.RAYLET)
        self._died = {process.pid for process in self._doomed.children(recursive=True)} & self._replicas()
        self.service.kill(self._doomed)

    def _healed_of_death(self) -> bool:
        return not self._died & self._replicas() and self._has(_NODES)

    def _restart_gcs(self) -> None:
        assert self.service.cluster is not None, "it is our own"
        head = self.service.cluster.head_node
        head.kill_gcs_server()
        time.sleep(_AROUND_S)
        head.start_gcs_server()

    def _governed(self) -> bool:
        """Return whether the cluster can be operated again: the REST API answers through the GCS and the controller."""
        told = httpx2.get(self.rest, timeout=10, trust_env=False).json()
        return bool(told["applications"][_NAME]["status"] == "RUNNING") and self._has(_NODES)

    def _change_limit(self) -> None:
        application = self.config["applications"][0]
        live = {"user_config": {"limits": {"max_images": 8, "max_steps": 998}}}
        application["deployments"] = [{**each, **live} for each in application["deployments"]]
        self._deploy()

    def _limited(self) -> bool:
        return all(self._asked(num_images=9).status_code == 422 for _ in range(_IN_A_ROW))

    def _change_weights(self) -> None:
        self._model = self._asked().json()["parameters"]["model"]["hash"]
        self._old = self._replicas()
        self.config["applications"][0]["args"]["model"]["path"] = str(self.other_weights)
        self._deploy()

    def _renewed(self) -> bool:
        answers = [self._asked().json() for _ in range(_IN_A_ROW)]
        return not self._old & self._replicas() and all(
            answer["parameters"]["model"]["hash"] != self._model for answer in answers
        )


def main() -> None:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, open_cluster(Path(folder)) as operation:
        try:
            asyncio.run(operation.run())
        finally:
            print(f"\n{table(operation.rows)}\n")
    print(f"{time.monotonic() - began:.0f} s")
    if operation.broken:
        sys.exit("\n".join(["broken:", *operation.broken]))
    print("nothing was lost, and nothing restarted that need not")


@contextmanager
def open_cluster(folder: Path) -> Iterator[Operation]:
    """Run a head with the proxy and the ingresses, worker nodes, and Redis; nothing is deployed yet."""
    port, dashboard, redis = free_port(), free_port(), free_port()
    os.environ.update(ENVIRONMENT, RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    os.environ["RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING"] = "0"  # else one ingress replica gets all requests
    os.environ.update(RAY_worker_niceness="0")  # else replicas get nothing while others use the machine
    os.environ["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{redis}"
    checkpoint = tiny.build(folder)
    other = other_weights(checkpoint)
    args = _args(checkpoint)
    store = subprocess.Popen(  # noqa: S603, our own command
        ["redis-server", "--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],  # noqa: S607, from PATH
        stdout=subprocess.DEVNULL,
    )
    cluster = None
    try:
        head = {"num_cpus": 0, "resources": {"ingress": 4}, "include_dashboard": True, "dashboard_port": dashboard}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        service = Service(f"http://127.0.0.1:{port}", _NAME, args, cluster)
        for _ in range(_NODES + _SPARE):
            service.add_node()
        yield Operation(service, f"http://127.0.0.1:{dashboard}/api/serve/applications/", _config(args, port), other)
    finally:
        if cluster is not None:
            cluster.shutdown()
        store.kill()


def _args(checkpoint: Path) -> AppArgs:
    return AppArgs.model_validate(
        {
            "num_replicas": 1,
            "ingress_replicas": 2,
            "scaling": {"min_replicas": 0, "max_replicas": _NODES, "target_wait_s": 1, "downscale_delay_s": 5},
            "model": {"path": str(checkpoint), "name": "tiny", "width": 64, "height": 64, "max_size": 128},
            "limits": {"max_images": 16, "max_steps": 998},
            "streams": {"keep_s": 1},
        }
    )


def _config(args: AppArgs, port: int) -> dict[str, Any]:
    """Return the Serve config: the ingresses have a place of their own, as in deploy.yaml."""
    place = {"num_cpus": 0, "resources": {"ingress": 1}}
    application = {
        "name": _NAME,
        "route_prefix": "/",
        "import_path": "serve_app.app:build",
        "args": args.model_dump(mode="json", exclude_unset=True),
        "deployments": [{"name": "Ingress", "ray_actor_options": place}],
    }
    http = {"host": "127.0.0.1", "port": port, "request_timeout_s": 330}
    return {"proxy_location": "HeadOnly", "http_options": http, "applications": [application]}


def other_weights(checkpoint: Path) -> Path:
    """Return a second checkpoint beside this one, whose pictures are others."""
    other = Path(shutil.copytree(checkpoint, checkpoint.with_name("other")))
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file)
    return other


def table(rows: list[Row]) -> str:
    lines = [" | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS), *(" | ".join(row.cells) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


if __name__ == "__main__":
    main()
