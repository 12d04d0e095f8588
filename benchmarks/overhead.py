"""`make bench`: the gain of the fan-out and the cost of HTTP and previews, with the embedded model on two cores.

Both sides of a ratio are measured alternately, so that a machine that slows down slows both.
"""

import http.client
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import ray
import torch
import yaml
from ray import serve

from benchmarks.ports import free_port
from serve_app.app import build
from serve_app.config import AppArgs
from serve_app.messages import Generated, Slot, SlotEvent
from serve_app.recipe import Output, Recipe
from serve_app.replica.checkpoint import load_checkpoint, quiet_progress_bars
from serve_app.replica.engine import Engine
from serve_app.replica.observer import Silent

ROUNDS = 11
LOCAL = Path(__file__).parent.parent / "configs" / "local.yaml"
BODY = {"prompt": "a red apple", "seed": 7}


@dataclass(frozen=True)
class Target:
    """A ratio and its upper limit."""

    name: str
    measured: Callable[[], float]
    baseline: Callable[[], float]
    at_most: Callable[[float], float]


class Client:
    """Sends requests to a deployed application, each on a new connection: Serve closes those idle for 90 s."""

    def __init__(self, port: int, prefix: str) -> None:
        self._port = port
        self._prefix = prefix

    def seconds(self, route: str, **body: object) -> float:
        """Return the seconds until the last byte of the answer."""
        started = time.perf_counter()
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)) as connection:
            connection.request(
                "POST", self._prefix + route, json.dumps({**BODY, **body}), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            answer = response.read()
        if response.status != 200:
            sys.exit(f"{route}: {response.status} {answer.decode()}")
        return time.perf_counter() - started


def main() -> None:
    args = AppArgs.model_validate(yaml.safe_load(LOCAL.read_text())["applications"][0]["args"])
    single = args.model_copy(update={"num_replicas": 1, "num_cpus": 1})
    with _deployed({"/two": args, "/one": single}) as port, _engine(single) as in_process:
        two, one = Client(port, "/two"), Client(port, "/one")
        targets = [
            Target(
                "4 images: 2 replicas / 1 replica with 1 thread",
                lambda: two.seconds("/generate", num_images=4),
                lambda: one.seconds("/generate", num_images=4),
                lambda baseline: 0.75,
            ),
            Target(
                "1 image: HTTP / engine in-process",
                lambda: one.seconds("/generate", num_images=1),
                in_process,
                lambda baseline: 1.05 + 0.020 / baseline,
            ),
            Target(
                "4 images streamed: previews every 5 steps / none",
                lambda: two.seconds("/stream", num_images=4, preview_every=5),
                lambda: two.seconds("/stream", num_images=4, preview_every=0),
                lambda baseline: 1.10,
            ),
        ]
        print(f"{'':50} {'median':>9} {'baseline':>9} {'ratio':>7} {'at most':>8}")
        for target in targets:
            _report(target)


def _report(target: Target) -> None:
    target.measured(), target.baseline()
    pairs = [(target.measured(), target.baseline()) for _ in range(ROUNDS)]
    measured, baseline = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{target.name:50} {measured:7.3f} s {baseline:7.3f} s {ratio:7.3f} {target.at_most(baseline):8.3f}")


@contextmanager
def _deployed(applications: dict[str, AppArgs]) -> Iterator[int]:
    """Run several applications in one Serve, and yield its port once all are ready."""
    port = free_port()
    cores = sum(args.num_replicas * args.num_cpus for args in applications.values())
    # May be more cores than the machine has, since only one application works at a time.
    ray.init(address="local", num_cpus=int(cores), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        for prefix, args in applications.items():
            serve.run(build(args), name=prefix.strip("/"), route_prefix=prefix)
            _wait_until_ready(port, prefix, args.num_replicas)
        yield port
    finally:
        serve.shutdown()
        ray.shutdown()


def _wait_until_ready(port: int, prefix: str, replicas: int) -> None:
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", prefix + "/health")
        if json.load(connection.getresponse()).get("replicas", {}).get("ready") == replicas:
            return
        time.sleep(0.2)


@contextmanager
def _engine(args: AppArgs) -> Iterator[Callable[[], float]]:
    """Yield a function that generates an image in this process, without Ray or HTTP, and returns the seconds taken."""
    torch.set_num_threads(1)
    quiet_progress_bars()
    checkpoint = load_checkpoint(args.model, torch.device("cpu"))
    engine = Engine(checkpoint, args.engine, args.preview, Silent())
    engine.start()
    recipe = Recipe(
        prompt=str(BODY["prompt"]),
        width=args.model.width,
        height=args.model.height,
        num_inference_steps=args.model.num_inference_steps,
        guidance_scale=args.model.guidance_scale,
        scheduler=checkpoint.scheduler,
    )
    slot = Slot(0, 7, recipe, Output())

    def seconds() -> float:
        events: Queue[SlotEvent | Exception] = Queue()
        started = time.perf_counter()
        engine.submit(slot, events.put)
        event: Any = None
        while not isinstance(event, Generated):
            event = events.get(timeout=300)
        return time.perf_counter() - started

    try:
        yield seconds
    finally:
        engine.stop()


if __name__ == "__main__":
    main()
