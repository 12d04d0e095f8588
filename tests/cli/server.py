"""A server, or proxy, that gives the same answer to every request."""

import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import MappingProxyType

from serve_app.schemas import (
    CompletedEvent,
    ErrorDetail,
    ErrorEvent,
    Event,
    FailedEvent,
    ImageEvent,
    ModelInfo,
    Parameters,
    Problem,
    StartEvent,
    Timings,
)

EMPTY: Mapping[str, str] = MappingProxyType({})
Answering = AbstractContextManager[tuple[str, list[Message]]]

START = StartEvent(
    id="1",
    seeds=[7, 8],
    parameters=Parameters(
        prompt="a",
        negative_prompt="",
        width=64,
        height=64,
        num_inference_steps=4,
        guidance_scale=5,
        scheduler="euler",
        output_format="png",
        output_compression=None,
        model=ModelInfo(name="stub", revision=None, hash="0123456789"),
    ),
    warnings=["the prompt is too long"],
)
IMAGE = ImageEvent(index=0, seed=7, width=1, height=1, media_type="image/png", b64_json="cGljdHVyZQ==")
FAILED = FailedEvent(index=1, seed=8, error=ErrorDetail(type="internal", message="the \x1b[2Jsky fell"))
COMPLETED = CompletedEvent(
    id="1",
    timings=Timings(queue=0, encode_prompt=0, denoise=0, decode=0, encode=0, total=0, gpu=2.5),
    warnings=["no grid"],
)
ERROR = ErrorEvent(error=Problem(type="internal", message="the service failed on this request; its log says why"))


@contextmanager
def answering(
    status: int,
    body: bytes,
    media_type: str = "application/json",
    headers: Mapping[str, str] = EMPTY,
    tls: ssl.SSLContext | None = None,
    to_resume: int | None = None,
) -> Iterator[tuple[str, list[Message]]]:
    """Run a server that always gives one answer; yields its URL and the heads of the requests it gets.

    With `to_resume` this is its status where sketches are to go on.
    """
    heard: list[Message] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(to_resume if to_resume and self.path.endswith("/resume") else status)
            for name, value in {"Content-Type": media_type, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def do_CONNECT(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}", heard
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def breaking(first: Sequence[Event], rest: Sequence[Event]) -> Iterator[tuple[str, list[tuple[str, str, str | None]]]]:
    """Run a server that breaks a stream off, gives its rest to who first asks for it, and then has forgotten it.

    Yields its URL and, of each request, its method, path and Last-Event-ID.
    """
    heard: list[tuple[str, str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send(first, 1)

        def do_GET(self) -> None:
            if any(method == "GET" for method, *_ in heard):
                heard.append((self.command, self.path, self.headers["Last-Event-ID"]))
                self.send_error(404)
            else:
                self.send(rest, len(first) + 1)

        def do_DELETE(self) -> None:
            self.send((), 1)

        def send(self, events: Sequence[Event], number: int) -> None:
            heard.append((self.command, self.path, self.headers["Last-Event-ID"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for n, event in enumerate(events, number):
                self.wfile.write(f"event: {event.type}\ndata: {event.model_dump_json()}\nid: {n}\n\n".encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", heard
        finally:
            server.shutdown()
            thread.join()


def streaming(
    *events: Event,
    headers: Mapping[str, str] = EMPTY,
    tls: ssl.SSLContext | None = None,
    to_resume: int | None = None,
) -> Answering:
    """Run a server whose answer are events."""
    frames = "".join(f"event: {event.type}\ndata: {event.model_dump_json()}\n\n" for event in events)
    return answering(200, frames.encode(), "text/event-stream; charset=utf-8", headers, tls, to_resume)
