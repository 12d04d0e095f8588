"""Streams that break: what clients see of them over HTTP."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from starlette.testclient import TestClient

from serve_app.config import AppArgs, FilesConfig, StreamsConfig
from serve_app.errors import SlotFailed
from serve_app.ingress.api import create_api
from serve_app.messages import Slot
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, numbered_events_of

BODY = {"prompt": "a", "num_images": 2, "seed": 7, "preview_steps": [1]}


@pytest.fixture
def short_lived(pool: FakePool) -> Iterator[TestClient]:
    """A service that keeps what has ended for 0.3 s."""
    args = ARGS.model_copy(update={"streams": StreamsConfig(keep_s=0.3)})
    with TestClient(create_api(OneModel(pool, args, Metrics()), args)) as client:
        yield client


def streamed(client: TestClient, **body: object) -> str:
    """Generate to the end and return the id."""
    id_ = str(uuid4())
    assert client.post("/stream", json={**BODY, "id": id_, **body}).status_code == 200
    return id_


def test_a_stream_goes_on_after_the_last_event_that_the_client_has(client: TestClient) -> None:
    id_ = str(uuid4())
    told = numbered_events_of(client.post("/stream", json={**BODY, "id": id_}))
    assert told[0][0] == 1
    assert told[0][1]["id"] == id_
    lasting = [(n, event) for n, event in told if event["type"] not in ("queued", "progress", "preview")]
    first_picture = lasting[1][0]
    for after in (0, first_picture):
        headers = {"Last-Event-ID": str(after)} if after else {}
        response = client.get(f"/generations/{id_}/events", headers=headers)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert numbered_events_of(response) == [(n, event) for n, event in lasting if n > after]


@pytest.mark.parametrize("last", ["-1", "x", "1.5"])
def test_a_last_event_id_is_a_number(client: TestClient, last: str) -> None:
    response = client.get(f"/generations/{uuid4()}/events", headers={"Last-Event-ID": last})
    assert (response.status_code, response.json()["error"]["param"]) == (422, "Last-Event-ID")


def test_after_the_end_the_end_is_told_once_more(client: TestClient) -> None:
    """An empty stream would look like one that broke."""
    path = f"/generations/{streamed(client)}/events"
    last = numbered_events_of(client.get(path))[-1]
    response = client.get(path, headers={"Last-Event-ID": str(last[0])})
    assert numbered_events_of(response) == [last]
    assert last[1]["type"] == "completed"


def test_an_event_that_never_was_is_refused(client: TestClient) -> None:
    """Its reader would miss all events up to it."""
    response = client.get(f"/generations/{streamed(client)}/events", headers={"Last-Event-ID": "999"})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (422, "invalid_request", "Last-Event-ID")
    assert "999 is above the last event so far" in error["message"]


def test_the_answer_of_a_stream_is_that_of_generate(client: TestClient) -> None:
    id_ = streamed(client, grid=True)
    kept, direct = client.get(f"/generations/{id_}"), client.post("/generate", json={**BODY, "grid": True})
    assert kept.status_code == 200
    varying = {"id", "created", "timings"}
    assert {k: v for k, v in kept.json().items() if k not in varying} == {
        k: v for k, v in direct.json().items() if k not in varying
    }
    assert kept.json()["id"] == id_
    assert kept.json()["created"] == pytest.approx(time.time(), abs=5)


def test_generate_is_found_by_an_id_of_the_clients_own(client: TestClient) -> None:
    id_ = str(uuid4())
    answer = client.post("/generate", json={**BODY, "id": id_, "on_disconnect": "finish"}).json()
    assert answer["id"] == id_
    assert client.get(f"/generations/{id_}").json() == answer


def test_only_a_uuid_is_an_id(client: TestClient) -> None:
    for wrong in ("mine", str(uuid4()).upper(), f"{uuid4()}\n", 1):
        response = client.post("/generate", json={**BODY, "id": wrong})
        assert (response.status_code, response.json()["error"]["param"]) == (422, "id")


def test_a_failed_generation_answers_as_generate_does(client: TestClient, pool: FakePool) -> None:
    async def fail(slot: Slot) -> None:
        raise SlotFailed("out_of_memory", "no room")

    pool.before = fail
    kept, direct = client.get(f"/generations/{streamed(client)}"), client.post("/generate", json=BODY)
    assert (kept.status_code, kept.json()) == (direct.status_code, direct.json())
    assert kept.status_code == 500


def test_what_is_over_is_a_404(short_lived: TestClient) -> None:
    id_ = streamed(short_lived)
    assert short_lived.get(f"/generations/{id_}").status_code == 200
    time.sleep(0.5)
    for path in (f"/generations/{id_}", f"/generations/{id_}/events"):
        response = short_lived.get(path)
        assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found")


def test_a_running_generation_is_a_202_that_says_how_far_its_images_are(client: TestClient, pool: FakePool) -> None:
    released = asyncio.Event()

    async def second_waits(slot: Slot) -> None:
        if slot.index:
            await released.wait()

    pool.before = second_waits
    id_ = str(uuid4())
    with ThreadPoolExecutor() as threads:
        whole = threads.submit(client.post, "/stream", json={**BODY, "id": id_})
        while (response := client.get(f"/generations/{id_}")).status_code != 202 or not_yet(response.json()):
            time.sleep(0.01)
        assert client.portal
        client.portal.call(released.set)
        assert whole.result().status_code == 200
    told = response.json()
    assert set(told) == {"id", "created", "parameters", "warnings", "images"}
    assert told["images"] == [
        {"index": 0, "seed": 7, "status": "succeeded"},
        {"index": 1, "seed": 8, "status": "running"},
    ]


def not_yet(unfinished: dict[str, Any]) -> bool:
    return bool(unfinished["images"][0]["status"] != "succeeded")


def test_urls_stay_urls(tmp_path: Path) -> None:
    args = AppArgs(files=FilesConfig(path=str(tmp_path)))
    with TestClient(create_api(OneModel(FakePool(), args, Metrics()), args)) as client:
        id_ = str(uuid4())
        body = {**BODY, "id": id_, "response_format": "url", "num_images": 1}
        client.post("/stream", json=body)
        events = numbered_events_of(client.get(f"/generations/{id_}/events"))
        (image,) = [event for _, event in events if event["type"] == "image"]
        assert "b64_json" not in image
        assert client.get(image["url"]).status_code == 200
        (image,) = client.get(f"/generations/{id_}").json()["images"]
        assert "b64_json" not in image
        assert client.get(image["url"]).status_code == 200
        assert len(list(tmp_path.iterdir())) == 1, "stored once"
