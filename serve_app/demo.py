"""`make demo`: start the service, generate four images with the command line, stop the service."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from serve_app.cli.ending import run
from serve_app.cli.errors import Unavailable, Unusable
from serve_app.cli.main import app
from serve_app.cli.options import URL
from serve_app.cli.request import make_folder
from serve_app.cli.service import KEY_VARIABLE

OUT = Path("out")
COMMAND = ["generate", "a red apple", "-n", "4", "--seed", "7", "--out", str(OUT), "--url", URL]
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 30.0


def main() -> None:
    """Run the demo, ignoring proxies and keys of the environment. Raises CommandError."""
    os.environ.pop(KEY_VARIABLE, None)  # it belongs to another service
    with service():
        print(f"$ {shlex.join(['.venv/bin/parallel-sdxl', *COMMAND])}", flush=True)
        app(COMMAND)


@contextmanager
def service() -> Iterator[None]:
    """Run the service on the embedded model while the context is open. Raises CommandError."""
    if _answers():
        raise Unusable(f"something is already running on {URL}; stop it first (or use it: parallel-sdxl generate)")
    log = OUT / "service.log"
    make_folder(OUT)
    print(f"starting the service on {URL} (log: {log}) ...", flush=True)
    with log.open("w") as file:
        # A session of its own, so that Ctrl-C reaches only this program, which then stops the service cleanly.
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.serve", "--no-dashboard", "configs/local.yaml"],
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, log)
            yield
        finally:
            print("stopping the service ...", flush=True)
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _all_replicas_ready():
        if process.poll() is not None:
            raise Unavailable(f"the service exited before it was ready; see {log}")
        if time.monotonic() > deadline:
            raise Unavailable(f"the service was not ready within {_START_TIMEOUT_S:g} s; see {log}")
        time.sleep(0.5)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # not SIGINT, which a background job ignores
    try:
        process.wait(_STOP_TIMEOUT_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _all_replicas_ready() -> bool:
    """Return whether images would be spread over all replicas; the first is ready a moment earlier."""
    answer = _answer("/health")
    if answer is None or answer.status_code != httpx2.codes.OK:
        return False
    replicas = answer.json()["replicas"]
    return bool(replicas["ready"] >= replicas["target"])


def _answers() -> bool:
    answer = _answer("/-/healthz")
    return answer is not None and answer.status_code == httpx2.codes.OK


def _answer(path: str) -> httpx2.Response | None:
    try:
        # The service runs on this machine: ignore the environment's proxies and certificates.
        return httpx2.get(URL + path, timeout=2, trust_env=False)
    except httpx2.RequestError:
        return None


if __name__ == "__main__":
    run(main)
