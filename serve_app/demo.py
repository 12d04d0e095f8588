"""`make demo`: start the service, ask it for four images over HTTP, show how they form, stop it again."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

URL = "http://127.0.0.1:8000"
OUT = Path("out")
PROMPT = "a red apple"
SEED = 7
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 30.0


def main() -> None:
    if _answers():
        sys.exit(f"something answers on {URL} already; stop it first (for a service of yours, see the README for curl)")
    with _service():
        _paint()


@contextmanager
def _service() -> Iterator[None]:
    """Run the service on the embedded model for as long as the context is open."""
    log = OUT / "service.log"
    OUT.mkdir(exist_ok=True)
    print(f"starting the service on {URL} (log: {log}) ...", flush=True)
    with log.open("w") as file:
        serve = Path(sys.executable).with_name("serve")
        # A session of its own: Ctrl-C must reach this program alone, which then stops the service in order.
        process = subprocess.Popen([serve, "run", "configs/local.yaml"], stdout=file, stderr=file, start_new_session=True)  # noqa: S603 - our own command
        try:
            _wait_until_ready(process, log)
            yield
        finally:
            print("stopping the service ...", flush=True)
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _answers("/health"):
        if process.poll() is not None:
            sys.exit(f"the service has ended before it was ready; see {log}")
        if time.monotonic() > deadline:
            sys.exit(f"the service was not ready within {_START_TIMEOUT_S:g} s; see {log}")
        time.sleep(0.5)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # not SIGINT, which a background job ignores
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(path: str = "/-/healthz") -> bool:
    try:
        with urllib.request.urlopen(URL + path, timeout=2) as response:  # noqa: S310 - a constant http URL
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _paint() -> None:
    body = {"prompt": PROMPT, "seed": SEED, "num_images": 4, "grid": True}
    request = urllib.request.Request(URL + "/stream", json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310 - as above
    print(f"painting {PROMPT!r} four times, seeds {SEED} to {SEED + 3}", flush=True)
    started, failed = time.monotonic(), 0
    with urllib.request.urlopen(request, timeout=300) as response:  # noqa: S310 - as above
        for event in _events(response):
            failed += event["type"] in ("failed", "error")
            if line := _told(event):
                print(f"{time.monotonic() - started:6.2f} s  {line}", flush=True)
    if failed:
        sys.exit("not all images were painted")


def _events(response: Any) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


def _told(event: dict[str, Any]) -> str | None:
    """Return what to print of an event, having written its picture to a file if it holds one."""
    match event["type"]:
        case "preview":
            done = round(20 * event["step"] / event["num_inference_steps"])
            return f"image {event['index']}  [{'#' * done:20}]  step {event['step']}/{event['num_inference_steps']}, preview"
        case "image":
            return f"image {event['index']}  [{'#' * 20}]  done -> {_write('seed-' + str(event['seed']) + '.png', event)}"
        case "grid":
            return f"grid -> {_write('grid.png', event)}"
        case "failed" | "error":
            return f"failed: {event['error']['message']}"
        case "completed":
            return "completed"
        case _:
            return None


def _write(name: str, event: dict[str, Any]) -> Path:
    path = OUT / name
    path.write_bytes(base64.b64decode(event["b64_json"]))
    return path


if __name__ == "__main__":
    main()
