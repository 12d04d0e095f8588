"""The service as deployed: the start command with the config file, and clients over HTTP."""

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import yaml

from benchmarks.clients import keep_asking
from benchmarks.conditions import Conditions
from benchmarks.ports import free_port

_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 40.0
_REQUEST_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Answered:
    """Seconds until the answer; the part spent generating its last image; the part of that spent encoding its file."""

    total: float
    generated: float
    encoded: float


@dataclass(frozen=True)
class Streamed:
    """When previews and images arrived, in seconds after the request was sent."""

    first_preview: float | None
    images: tuple[float, ...]
    total: float


class Service:
    """A running service and a client that requests the workload. `pid` is the process of the start command.

    `started_s` is the time from its start until `/health` reports all replicas.
    """

    def __init__(self, url: str, pid: int, conditions: Conditions, started_s: float) -> None:
        self.url = url
        self.pid = pid
        self.conditions = conditions
        self.started_s = started_s
        self._http = httpx2.Client(base_url=url, timeout=_REQUEST_TIMEOUT_S, trust_env=False)
        self._numbers = count(1)

    def close(self) -> None:
        self._http.close()

    def generate(self, images: int, **changes: Any) -> Answered:
        started = time.perf_counter()
        response = self._http.post("/generate", json=self._body(images, **changes))
        seconds = time.perf_counter() - started
        _check(response, images)
        timings = response.json()["timings"]
        generated = sum(timings[part] for part in ("encode_prompt", "denoise", "decode", "encode"))
        return Answered(seconds, generated, timings["encode"])

    def pictures(self, images: int, **body: Any) -> list[bytes]:
        """Return the files of a request's images; `body` overrides the workload's fields."""
        response = self._http.post("/generate", json=self._body(images, **body))
        _check(response, images)
        return [base64.b64decode(image["b64_json"]) for image in response.json()["images"]]

    def ready(self) -> int:
        """Return how many replicas are ready."""
        return _ready(self._http)

    def stream(self, images: int, **changes: Any) -> Streamed:
        started = time.perf_counter()
        preview: float | None = None
        finished: list[float] = []
        with self._http.stream("POST", "/stream", json=self._body(images, **changes)) as response:
            for line in response.iter_lines():
                match line:
                    case "event: preview":
                        preview = preview or time.perf_counter() - started
                    case "event: image":
                        finished.append(time.perf_counter() - started)
        total = time.perf_counter() - started
        if len(finished) != images:
            raise RuntimeError(f"{len(finished)} of {images} images came")
        return Streamed(preview, tuple(finished), total)

    def events(self, images: int, **changes: Any) -> Iterator[tuple[float, dict[str, Any]]]:
        """Yield a stream's events, each with the seconds since the request was sent."""
        started = time.perf_counter()
        with self._http.stream("POST", "/stream", json=self._body(images, **changes)) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield time.perf_counter() - started, json.loads(line.removeprefix("data: "))

    def finish(self, id: str, kept: Iterable[int], dropped: Iterable[int]) -> None:
        """Let some of a request's sketches go on, and cancel others."""
        self._http.post(f"/generations/{id}/resume", json={"images": list(kept)}).raise_for_status()
        for index in dropped:
            self._http.delete(f"/generations/{id}/images/{index}").raise_for_status()

    def load(self, clients: int, images: int, seconds: float, **changes: Any) -> list[float]:
        """Send requests for `seconds`, and until each client has four answers; return when each image came."""

        def ask(http: httpx2.Client) -> httpx2.Response:
            return self.ask(http, images, **changes)

        answered = keep_asking(
            clients, seconds, 4, ask, lambda response: _check(response, images), timeout_s=_REQUEST_TIMEOUT_S
        )
        return [moment for moment in answered for _ in range(images)]

    def ask(self, http: httpx2.Client, images: int, **changes: Any) -> httpx2.Response:
        """Send a request with a client's own connections."""
        return http.post(f"{self.url}/generate", json=self._body(images, **changes))

    def first_event(self) -> float:
        """Return the seconds until the first event of a stream."""
        started = time.perf_counter()
        with self._http.stream("POST", "/stream", json=self._body(1)) as response:
            next(response.iter_lines())
            return time.perf_counter() - started

    def _body(self, images: int, **changes: Any) -> dict[str, Any]:
        work, number = self.conditions.workload, next(self._numbers)
        body = {
            "prompt": f"{work.prompt}, {number}",
            "seed": 1000 * number,
            "num_images": images,
            "width": work.size,
            "height": work.size,
            "num_inference_steps": work.steps,
            "guidance_scale": work.guidance,
            "scheduler": "euler",
            "output_format": "jpeg",
            "preview_every": 0,
        }
        return {**body, **changes}


@contextmanager
def open_service(conditions: Conditions, import_path: str | None = None) -> Iterator[Service]:
    """Run the service until the context closes; it is ready and warm. `import_path` is for another builder."""
    port = free_port()
    document = conditions.document()
    if import_path is not None:
        document["applications"][0]["import_path"] = import_path
    document["http_options"] = {**document["http_options"], "host": "127.0.0.1", "port": port}
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder, "serve.yaml"), Path(folder, "serve.log")
        config.write_text(yaml.safe_dump(document))
        started = time.perf_counter()
        with log.open("w") as file:
            # A virtual machine may report less memory than it can get, and Ray's monitor would kill loading replicas.
            environment = {
                **os.environ,
                "RAY_ADDRESS": "local",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_memory_monitor_refresh_ms": "0",
            }
            command = [sys.executable, "-m", "serve_app.serve", "--no-dashboard", str(config)]
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)  # noqa: S603, our own command
        try:
            _wait_until_ready(process, port, len(conditions.devices), log)
            service = Service(f"http://127.0.0.1:{port}", process.pid, conditions, time.perf_counter() - started)
            service.generate(len(conditions.devices))
            yield service
            service.close()
        finally:
            _stop(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int, replicas: int, log: Path) -> None:
    deadline = time.perf_counter() + _START_TIMEOUT_S
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        while _ready(http) != replicas:
            if process.poll() is not None or time.perf_counter() > deadline:
                raise RuntimeError(f"the service did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)


def _ready(http: httpx2.Client) -> int:
    try:
        health = http.get("/health", timeout=5).json()
    except (httpx2.TransportError, json.JSONDecodeError):
        return 0
    return int(health["replicas"]["ready"])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _check(response: httpx2.Response, images: int) -> None:
    if response.status_code != httpx2.codes.OK:
        raise RuntimeError(f"{response.status_code}: {response.text[:500]}")
    pictures = [image for image in response.json()["images"] if image["status"] == "succeeded"]
    if len(pictures) != images:
        raise RuntimeError(f"{len(pictures)} of {images} images came")
