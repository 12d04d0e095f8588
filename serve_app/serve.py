"""`python -m serve_app.serve CONFIG`: run the service, and end it in order on SIGTERM or Ctrl-C.

`serve run` alone ends its HTTP proxies first, and running answers are torn: here new requests are refused, the running
ones have a grace to finish in, and only then Serve ends.
"""

import argparse
import signal
import threading
import time
from contextlib import suppress
from types import FrameType

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.scripts import cli

from serve_app.ingress.deployment import Ingress

GRACE_S = 30.0
_MARGIN_S = 10.0
_SENDING_S = 1.0
"""How long the proxies may take to pass on the last answers: nothing says when they have."""


def main() -> None:
    """Run a Serve config until told to end; a second signal ends at once."""
    parser = argparse.ArgumentParser(prog="python -m serve_app.serve", description=__doc__.partition("\n")[0])
    parser.add_argument("config", help="a Serve config, such as configs/local.yaml")
    parser.add_argument(
        "--grace", type=float, default=GRACE_S, metavar="SECONDS", help="for running requests to finish (%(default)g)"
    )
    options = parser.parse_args()
    told = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if told.is_set():
            raise SystemExit(128 + number)
        told.set()

    ray.init(namespace="serve")  # first: it takes SIGTERM for itself
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    cli(["run", "--non-blocking", options.config], standalone_mode=False)
    while not told.wait(1):  # a wait without end would not let Python see the signal
        pass
    print(f"shutting down: running requests have {options.grace:g} s ...", flush=True)
    drain(options.grace)
    serve.shutdown()


def drain(grace_s: float) -> None:
    """Let every ingress replica of this cluster refuse new requests and end its running ones."""
    told = []
    for name in serve.status().applications:
        with suppress(RayServeException):  # not an application of ours, or one that has not started
            told.append(serve.get_deployment_handle(Ingress.__name__, name).broadcast("drain", grace_s))
    for answers in told:
        with suppress(RayServeException, TimeoutError):
            answers.results(timeout_s=grace_s + _MARGIN_S, return_exceptions=True)
    time.sleep(_SENDING_S)


if __name__ == "__main__":
    main()
