"""`python -m serve_app.serve CONFIG`: run the service, and end it in order on SIGTERM or Ctrl-C.

`serve run` alone ends its HTTP proxies first, and running answers are torn: here new requests are refused, the running
ones have a grace to finish in, and only then Serve ends. `serve run` also joins any Ray that it finds on the machine,
and replaces what runs there: here that Ray must be named, and what it runs stays.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml

from serve_app.forks.server import forked_workers
from serve_app.replica.imports import COMPILER

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from serve_app.config import AppArgs

# Ray and Serve are imported where they are used: that takes a second, in which what workers need is imported already.

ENVIRONMENT = {
    # Serve's controller reads it: else a replica that hangs keeps its GPU for as long as a request may take.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # glibc reads it. Ray runs about 40 threads in each process; by default they allocate from up to 8 heaps a core, of
    # which each keeps what it has freed, and an ingress replica grows for thousands of requests.
    "MALLOC_ARENA_MAX": "2",
    # Replicas read it: how often they tell what the number of replicas follows (`scaling`).
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    # Serve's controller reads it: how often a replica may fail to start before Serve gives up, by default 3 times. A
    # hub that cannot be reached may come back in the minutes that 10 take; a wrong setting will not mend itself.
    "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "10",
}
"""What Ray's processes must find in their environment when they start."""

_BESIDE_REPLICAS = 5
"""Processes of a service: Serve's controller, a proxy, the builder, an ingress, and a spare for a replica to come."""

GRACE_S = 30.0
_MARGIN_S = 10.0
_SENDING_S = 1.0
"""How long the proxies may take to pass on the last answers: nothing says when they have."""


OWN = "local"
"""The address by which Ray starts anew."""
BUILDER = "serve_app.app:build"


def main() -> None:
    """Run a Serve config until told to end; a second signal ends at once."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.serve", description=__doc__.partition("\n")[0])
    parser.add_argument("config", help="a Serve config, such as configs/local.yaml")
    parser.add_argument(
        "--grace", type=float, default=GRACE_S, metavar="SECONDS", help="for running requests to finish (%(default)g)"
    )
    parser.add_argument(
        "--address", help="of a running Ray to join, or auto to find it (RAY_ADDRESS; else a Ray of its own is started)"
    )
    parser.add_argument("--no-dashboard", action="store_true", help="without Ray's dashboard, which is ten processes")
    options = parser.parse_args()
    told = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if told.is_set():
            raise SystemExit(128 + number)
        told.set()

    for name, value in {**ENVIRONMENT, **prestarted(options.config, os.cpu_count() or 1)}.items():
        os.environ.setdefault(name, value)
    address = address_of(options.address, os.environ)
    forks = address == OWN and sys.platform == "linux"  # elsewhere what is imported may not be forked
    with forked_workers(*before_forks(options.config)) if forks else nullcontext():
        with ThreadPoolExecutor(1) as beside:
            beside.submit(import_module, "ray.serve.scripts")
            start_ray(address, options.config, options.no_dashboard)  # it takes SIGTERM
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        serve_until(told, options.config, options.grace)


def serve_until(told: threading.Event, config: str, grace_s: float) -> None:
    """Run the config until told to end, and end it in order."""
    from ray import serve
    from ray.serve.scripts import cli

    cli(["run", "--non-blocking", "--address", "auto", config], standalone_mode=False)
    for warning in cut_off(config):
        print(warning, flush=True)
    while not told.wait(1):  # a wait without end would not let Python see the signal
        pass
    print(f"shutting down: running requests have {grace_s:g} s ...", flush=True)
    drain(grace_s)
    serve.shutdown()


def address_of(option: str | None, environ: Mapping[str, str]) -> str:
    """Return the address of the Ray to join, or OWN. Ray itself would look for any Ray on this machine."""
    return option or environ.get("RAY_ADDRESS") or OWN


def start_ray(address: str, config: str, no_dashboard: bool) -> None:
    """Start or join Ray, and say which. Exits where that would take a place that others have."""
    import ray

    if address == OWN:
        require_port(config)
        ray.init(OWN, namespace="serve", include_dashboard=False if no_dashboard else None)  # None: if installed
        print("This service has a Ray of its own; --address or RAY_ADDRESS would join a running one.", flush=True)
        return
    from ray import serve

    ray.init(address, namespace="serve")
    found = ray.get_runtime_context().gcs_address
    if running := ", ".join(serve.status().applications):
        sys.exit(
            f"The Ray at {found} runs {running} already, which this command would replace, and end when it ends. "
            f"To change what runs there: serve deploy {config}"
        )
    print(f"This service has joined the Ray at {found}; Serve ends there when this command ends.", flush=True)


def require_port(config: str) -> None:
    """Exit where the port is taken: Serve's proxies would share it, and each request reach either service."""
    given = _read(config)
    if given.get("proxy_location") == "Disabled":
        return
    http = {"host": "0.0.0.0", "port": 8000, **_mapping(given.get("http_options"))}  # noqa: S104, Serve's own defaults
    host, port = str(http["host"]), int(http["port"])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        sys.exit(f"port {port} of {host} cannot be had: {os.strerror(error.errno or 0)}")


def prestarted(config: str, cores: int) -> Mapping[str, str]:
    """Return what makes Ray start no processes at first but those of this service.

    Else Ray starts one for each core, and waits for all of them. Nothing is returned for fewer cores than processes.
    """
    processes = sum(own.num_replicas for own in _served(config)) + _BESIDE_REPLICAS
    if cores < processes:
        return {}
    return {
        "RAY_worker_maximum_startup_concurrency": str(processes),  # so that it starts no more
        "RAY_num_workers_soft_limit": str(processes),  # so that it ends none of them
    }


def before_forks(config: str) -> tuple[Sequence[str], bool]:
    """Return what to import before workers are forked, beside what all services need, and whether some have GPUs."""
    served = _served(config)
    compiled = any(own.engine.compile != "none" for own in served)
    return COMPILER if compiled else (), any(own.num_gpus for own in served)


def cut_off(config: str) -> Iterator[str]:
    """Yield a sentence for each of our applications whose streams Serve may end before their images have ended."""
    limit_s = _mapping(_read(config).get("http_options")).get("request_timeout_s")
    for args in _ours(config):
        longest_s = args.request_timeout_s + args.trajectories.ttl_s
        if limit_s and limit_s <= longest_s:
            yield (
                f"http_options.request_timeout_s ({limit_s:g}) ends streams whose images are paused too early: with "
                f"request_timeout_s and trajectories.ttl_s they may last {longest_s:g} s"
            )


def _served(config: str) -> "Sequence[AppArgs]":
    """Return the arguments of each model of our applications."""
    return [own for args in _ours(config) for own in args.served.values()]


def _ours(config: str) -> "Iterator[AppArgs]":
    """Yield the arguments of each of our applications; Serve says what is wrong with others."""
    from serve_app.config import AppArgs

    applications = _read(config).get("applications")
    for application in map(_mapping, applications if isinstance(applications, list) else ()):
        if application.get("import_path") == BUILDER:
            with suppress(ValueError):
                yield AppArgs.model_validate(application.get("args") or {})


def _read(config: str) -> dict[str, Any]:
    file = Path(config)
    given = yaml.safe_load(file.read_text()) if file.is_file() else {}
    return _mapping(given)  # where it is no file it is a builder, for which defaults hold


def _mapping(given: Any) -> dict[str, Any]:
    """Return a mapping as it is, and anything else as an empty one: Serve says what is wrong with it."""
    return given if isinstance(given, dict) else {}


def drain(grace_s: float) -> None:
    """Let every ingress replica of this cluster refuse new requests and end its running ones."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from serve_app.ingress.deployment import Ingress

    handles = []
    for name in serve.status().applications:
        with suppress(RayServeException):  # not an application of ours, or one that has not started
            handles.append(serve.get_deployment_handle(Ingress.__name__, name))
    asyncio.run(drained(handles, grace_s))
    time.sleep(_SENDING_S)


async def drained(ingresses: "Iterable[DeploymentHandle]", grace_s: float) -> None:
    """Drain ingress deployments, all at once: a broadcast is made when somebody waits for it."""
    await asyncio.gather(*[_drained(ingress, grace_s) for ingress in ingresses])


async def _drained(ingress: "DeploymentHandle", grace_s: float) -> None:
    from ray.serve.exceptions import RayServeException

    with suppress(RayServeException, TimeoutError):
        told = ingress.broadcast("drain", grace_s)
        await told.results_async(timeout_s=grace_s + _MARGIN_S, return_exceptions=True)


if __name__ == "__main__":
    main()
