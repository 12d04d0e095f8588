"""Pictures at URLs, from real servers: one that may be asked, and one that must not hear of anything."""

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.config import PicturesConfig
from serve_app.ingress import fetching
from serve_app.ingress.api import create_api
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, LIMITS, client_of
from tests.ingress.test_pictures import HASH, PHOTO


@dataclass
class Server:
    """A server on this machine; `heard` are the paths and headers of its requests."""

    origin: str
    elsewhere: str = ""
    heard: list[tuple[str, dict[str, str]]] = field(default_factory=list)


def _answer(server: Server, path: str) -> tuple[int, dict[str, str], bytes]:
    answers: dict[str, tuple[int, dict[str, str], bytes]] = {
        "/photo.png": (200, {}, PHOTO),
        "/moved": (302, {"Location": f"{server.elsewhere}/photo.png"}, b""),
        "/large": (200, {}, bytes(LIMITS.max_body_bytes + 1)),
        "/packed": (200, {"Content-Encoding": "gzip"}, gzip.compress(PHOTO)),
        "/page": (200, {"Content-Type": "text/html"}, b"<p>no picture"),
        "/slow": (200, {}, PHOTO),
    }
    return answers.get(path, (404, {}, b""))


@contextmanager
def serving() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.heard.append((self.path, dict(self.headers)))
            status, headers, body = _answer(server, self.path)
            if self.path == "/slow":
                time.sleep(0.5)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        server = Server(f"http://127.0.0.1:{listening.server_address[1]}")
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        listening.shutdown()


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    """One that may be asked, and one that may not."""
    with ExitStack() as stack:
        allowed, forbidden = (stack.enter_context(serving()) for _ in range(2))
        allowed.elsewhere = forbidden.origin
        yield allowed, forbidden


@pytest.fixture
def asking(servers: tuple[Server, Server]) -> Iterator[TestClient]:
    args = ARGS.model_copy(update={"pictures": PicturesConfig(fetch_from=(servers[0].origin,))})
    with client_of(OneModel(FakePool(), args, Metrics()), args) as client:
        yield client


def post(client: TestClient, url: str) -> Any:
    headers = {"Authorization": "Bearer secret", "Cookie": "a=b"}
    return client.post("/generate", json={"prompt": "a cat", "init_image": url}, headers=headers)


def refusal(response: Any) -> str:
    """Return what is said of a picture that is refused."""
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert error["param"] == "init_image"
    return str(error["message"])


def test_a_picture_is_fetched_and_its_host_hears_nothing_of_the_client(
    asking: TestClient, servers: tuple[Server, Server]
) -> None:
    allowed, _ = servers
    assert post(asking, f"{allowed.origin}/photo.png").json()["parameters"]["init_image"] == HASH
    path, headers = allowed.heard[-1]
    assert path == "/photo.png"
    assert not {"Authorization", "Cookie"} & headers.keys()


def test_fals_clients_may_give_urls_too(asking: TestClient, servers: tuple[Server, Server]) -> None:
    body = {"prompt": "a cat", "image_url": f"{servers[0].origin}/photo.png"}
    assert asking.post("/fal-ai/fast-sdxl/image-to-image", json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/moved", "its host answered with status 302"),
        ("/none", "its host answered with status 404"),
        ("/large", "it is larger than 500000 bytes (limits.max_body_bytes)"),
        ("/packed", "its host sends it compressed, though asked not to"),
        ("/page", "is a web page"),
    ],
)
def test_what_cannot_be_used_is_told(asking: TestClient, servers: tuple[Server, Server], path: str, why: str) -> None:
    allowed, forbidden = servers
    assert why in refusal(post(asking, allowed.origin + path))
    assert forbidden.heard == []


def test_a_host_that_is_slow_holds_nobody(
    asking: TestClient, servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_TIMEOUT_S", 0.2)
    assert refusal(post(asking, f"{servers[0].origin}/slow")) == "init_image: could not be fetched within 0.2 s"


def test_a_host_that_is_gone_is_told() -> None:
    with serving() as gone:
        pass
    args = ARGS.model_copy(update={"pictures": PicturesConfig(fetch_from=(gone.origin,))})
    with TestClient(create_api(OneModel(FakePool(), args, Metrics()), args)) as client:
        assert "there is no connection" in refusal(post(client, f"{gone.origin}/photo.png"))


def test_the_usual_ways_around_lead_nowhere(asking: TestClient, servers: tuple[Server, Server]) -> None:
    allowed, forbidden = servers
    host, port = allowed.origin.removeprefix("http://").split(":")
    other = forbidden.origin.removeprefix("http://")
    before = len(allowed.heard)
    for url in (
        f"{forbidden.origin}/photo.png",
        f"http://{host}:{port}@{other}/photo.png",
        f"http://user@{host}:{port}/photo.png",
        f"http://{host}:{port}.example.com/photo.png",
        f"http://{host}:{port}\\@{other}/photo.png",
        f"http://{host}:{port}#@{other}/photo.png\n",
        f"http://localhost:{port}/photo.png",
        f"http://127.1:{port}/photo.png",
        f"http://2130706433:{port}/photo.png",
        f"http://0x7f000001:{port}/photo.png",
        f"http://[::ffff:127.0.0.1]:{port}/photo.png",
        f"http://{host}.:{port}/photo.png",
        f"https://{host}:{port}/photo.png",
        f"ftp://{host}:{port}/photo.png",
        f"//{host}:{port}/photo.png",
        f"http:{host}:{port}/photo.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
    ):
        assert refusal(post(asking, url)), url
    assert forbidden.heard == []
    assert len(allowed.heard) == before


def test_a_host_counts_as_a_whole() -> None:
    fetcher = fetching.Fetcher(("https://images.example.com",), 1)
    assert fetcher.may_fetch("https://IMAGES.example.com:443/a.png")
    assert not fetcher.may_fetch("https://images.example.com.example.org/a.png")
    assert not fetcher.may_fetch("https://images.example.com:8443/a.png")
    assert not fetcher.may_fetch("https://example.com/a.png")


@pytest.mark.parametrize("place", ["*", "null", "images.example.com", "https://images.example.com/", "ftp://a.b"])
def test_a_place_is_an_origin(place: str) -> None:
    with pytest.raises(ValueError, match="fetch_from"):
        PicturesConfig.model_validate({"fetch_from": [place]})
