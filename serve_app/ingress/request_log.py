"""The log and the metrics of requests."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.client import client, short
from serve_app.line import OTHER, ROUTES, Line, Outcome, begin
from serve_app.side_work import side_work

logger = logging.getLogger("ray.serve")

LEFT = 499
"""The status of a request whose client has left, in the log; nginx uses it too."""

GPU_SECONDS = "X-GPU-Seconds"

Count = Callable[[str, Outcome, float], None]
"""Counts a request: its route, or `other`; how it ended; its seconds."""


def nobody(route: str, outcome: Outcome, seconds: float) -> None:
    """Nobody counts."""


class LoggedRequests:
    """Logs and counts each request, and tells its client in a header what its images have cost.

    One whose generation goes on without its client is logged when that ends. Those that only look are logged as DEBUG
    and not counted: probes and pages ask every second.
    """

    def __init__(self, app: ASGIApp, count: Count = nobody) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        line, status, complete, started = Line(_write), LEFT, False, time.monotonic()
        begin(line)

        async def told(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                if "gpu_seconds" in line.facts:  # all images have ended; those of a stream have not begun
                    MutableHeaders(scope=message)[GPU_SECONDS] = f"{line.facts['gpu_seconds']:.3f}"
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        with line.open():
            try:
                await self._app(scope, receive, told)
            finally:
                seconds = time.monotonic() - started
                line.facts.update(
                    method=scope["method"],
                    path=quote(scope["path"].removeprefix(scope.get("root_path", ""))),
                    request_id=Headers(scope=scope).get("x-request-id", ""),
                    status=status if complete else LEFT,
                    seconds=round(seconds, 3),
                    client=short(client.get()),
                )
                if not _only_looks(line.facts):
                    route = line.facts["path"]
                    self._count(route if route in ROUTES else OTHER, _outcome(line.facts), seconds)


def _write(facts: Mapping[str, Any]) -> None:
    """Log a request: one line for people, and with its facts as fields where the log is JSON."""
    # Serve sets fields of its own: `route` (the application's prefix), `replica` and more.
    with side_work("a request could not be logged"):
        head = "{method} {path} {status} {seconds:.3f}s".format_map(facts)
        own = {"method", "path", "status", "seconds", "request_id"}
        rest = " ".join(f"{name}={_text(value)}" for name, value in facts.items() if name not in own and value != "")
        level = logging.DEBUG if _only_looks(facts) else logging.INFO
        logger.log(level, "%s %s", head, rest, extra=dict(facts))


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _only_looks(facts: Mapping[str, Any]) -> bool:
    """Return whether a request reads what costs nothing, such as /health, /status and the page, and gets its answer.

    503 is an answer of /health.
    """
    reads = facts["method"] in ("GET", "HEAD") and not facts["path"].startswith("/generations/")
    return reads and facts["status"] in (*range(200, 500), 503)


def _outcome(facts: Mapping[str, Any]) -> Outcome:
    match facts["status"]:
        case status if status == LEFT:
            return "left"
        case 429 | 503:
            return "refused"
        case status if 400 <= status < 500:
            return "invalid"
        case status if status < 400 and "error" not in facts:  # a stream tells of its error in its last event
            return "succeeded"
        case _:
            return "failed"
