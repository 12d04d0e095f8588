"""`make demo`: start the service, generate four images with the command line as a newcomer would, stop it again."""

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
from serve_app.cli.main import URL, app
from serve_app.cli.request import make_folder
from serve_app.cli.service import KEY_VARIABLE

OUT = Path("out")
COMMAND = ["generate", "a red apple", "-n", "4", "--seed", "7", "--out", str(OUT), "--url", URL]
_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 30.0


def main() -> None:
    """Run the demo, whatever the environment says. Raises CommandError."""
    if _answers():
        raise Unusable(
            f"something answers on {URL} already; stop it first (or generate with it: parallel-sdxl generate)"
        )
    os.environ.pop(KEY_VARIABLE, None)  # a key of another service
    with _service():
        print(f"$ {shlex.join(['.venv/bin/parallel-sdxl', *COMMAND])}", flush=True)
        app(COMMAND)


@contextmanager
def _service() -> Iterator[None]:
    """Run the service on the embedded model for as long as the context is open."""
    log = OUT / "service.log"
    make_folder(OUT)
    print(f"starting the service on {URL} (log: {log}) ...", flush=True)
    with log.open("w") as file:
        serve = Path(sys.executable).with_name("serve")
        # A session of its own: Ctrl-C must reach this program alone, which then stops the service in order.
        process = subprocess.Popen(  # noqa: S603 - our own command
            [serve, "run", "configs/local.yaml"], stdout=file, stderr=file, start_new_session=True
        )
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
            raise Unavailable(f"the service has ended before it was ready; see {log}")
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


def _answers(path: str = "/-/healthz") -> bool:
    try:
        # Its own service on this machine: neither a proxy nor certificates of the environment have a part in it.
        return httpx2.get(URL + path, timeout=2, trust_env=False).status_code == httpx2.codes.OK
    except httpx2.RequestError:
        return False


if __name__ == "__main__":
    run(main)
