import base64
import io
import json
import socket
import time
from itertools import pairwise
from urllib.parse import urlsplit

import pytest
from PIL import Image
from pydantic import TypeAdapter

from serve_app.schemas import Event
from tests.integration.conftest import MIN_INTERVAL_S, SMALL, Running, eventually

EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def test_events_come_in_order_for_every_image(app: Running) -> None:
    events = app.stream(num_images=3, seed=5, num_inference_steps=40, preview_every=10, grid=True)
    assert events[0]["type"] == "start"
    assert events[0]["seeds"] == [5, 6, 7]
    assert [e["type"] for e in events[-2:]] == ["grid", "completed"]
    assert events[-1]["id"] == events[0]["id"]
    for index in range(3):
        own = [e for e in events if e.get("index") == index]
        assert own[-1]["type"] == "image"
        assert {e["seed"] for e in own} == {5 + index}
        previews = [e for e in own if e["type"] == "preview"]
        steps = [e["step"] for e in previews]
        assert steps == sorted(set(steps))
        assert steps[0] == 1
        assert set(steps) <= {1, 10, 20, 30}
        for preview in previews:
            picture = Image.open(io.BytesIO(base64.b64decode(preview["b64_json"])))
            assert (picture.format, picture.size) == ("JPEG", (preview["width"], preview["height"]))
        assert all(a["step"] <= b["step"] for a, b in pairwise(e for e in own if e["type"] == "progress"))
    for event in events:
        EVENT.validate_python(event)


def test_images_of_one_request_are_interleaved(app: Running) -> None:
    """Two replicas tell of their images in turn; neither image is held back for the other."""
    events = app.stream(num_images=2, num_inference_steps=60, preview_every=5)
    order = [e["index"] for e in events if e["type"] in ("progress", "preview")]
    assert sum(a != b for a, b in pairwise(order)) > 4


def test_the_stream_starts_before_the_first_step_is_done(app: Running) -> None:
    with app.http.stream(
        "POST", "/stream", json={"prompt": "a", **SMALL, "num_images": 1, "num_inference_steps": 500}
    ) as response:
        first = next(line for line in response.iter_lines() if line.startswith("data: "))
        assert json.loads(first.removeprefix("data: "))["type"] == "start"


def test_queued_images_report_their_position(app: Running) -> None:
    events = app.stream(num_images=16, num_inference_steps=20)
    queued = [e for e in events if e["type"] == "queued"]
    assert {e["index"] for e in queued} == set(range(8, 16)), "eight are generated at once"
    for index in range(8, 16):
        positions = [e["position"] for e in queued if e["index"] == index]
        assert positions == sorted(positions, reverse=True)
        assert positions[0] == index - 7
    assert len([e for e in events if e["type"] == "image"]) == 16


@pytest.mark.parametrize("previews", [0, 1])
def test_previews_are_an_option(app: Running, previews: int) -> None:
    kinds = {e["type"] for e in app.stream(num_images=1, num_inference_steps=8, preview_every=previews)}
    assert ("preview" in kinds) == bool(previews)


def raw_stream(app: Running, **body: object) -> socket.socket:
    """Open a stream without reading it."""
    where = urlsplit(app.url)
    assert where.hostname
    assert where.port
    content = json.dumps({"prompt": "a red apple", **SMALL, **body}).encode()
    client = socket.create_connection((where.hostname, where.port))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    head = (
        f"POST /stream HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    client.sendall(head.encode() + content)
    return client


def test_a_client_that_stops_reading_is_bounded_and_slows_nobody(app: Running) -> None:
    """It gets no more than its previews at their interval and its images, and others are served meanwhile."""
    started = time.monotonic()
    with raw_stream(app, num_images=2, num_inference_steps=100, preview_every=1) as stalled:
        eventually(lambda: not app.idle())
        others = [app.generate(num_images=1)["images"] for _ in range(3)]
        assert all(image["status"] == "succeeded" for images in others for image in images)
        eventually(app.idle, seconds=60)
        generated_in = time.monotonic() - started
        stalled.settimeout(20)
        data = b""
        while b"event: completed" not in data:
            data += stalled.recv(2**20)
    previews = data.count(b"event: preview")
    # 99 previews of each image were asked for; it gets one an interval at most, each of 64 x 64 pixels.
    assert 2 <= previews <= 2 * (1 + generated_in / MIN_INTERVAL_S)
    assert previews < 2 * 99
    assert len(data) < 100_000 + previews * 5_000
    assert data.count(b"event: image") == 2
