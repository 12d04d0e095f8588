"""A stream whose connection breaks goes on at whichever ingress replica gets the client's next call."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from ray import serve

from tests.integration.conftest import KEEP_S, PAIR, SMALL, eventually

TRIES = 4
BODY = {"prompt": "a red apple", **SMALL, "num_inference_steps": 60, "num_images": 4, "preview_every": 10}


@pytest.fixture
async def client(pair: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=pair, timeout=60) as client:
        yield client


async def numbered(response: httpx2.Response) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """Yield the events with their ids."""
    assert response.status_code == 200, await response.aread()
    event: dict[str, Any] = {}
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
        if line.startswith("id: "):
            yield int(line.removeprefix("id: ")), event


async def cut_after_the_first_picture(client: httpx2.AsyncClient, **body: Any) -> list[tuple[int, dict[str, Any]]]:
    """Read a stream on a connection of its own until a picture has come, and cut that connection."""
    got = []
    async with (
        httpx2.AsyncClient(base_url=client.base_url, timeout=60) as own,
        own.stream("POST", "/stream", json={**BODY, **body}) as response,
    ):
        async for number, event in numbered(response):
            got.append((number, event))
            if event["type"] == "image":
                break
    return got


async def resumed(client: httpx2.AsyncClient, id_: str, after: int) -> list[tuple[int, dict[str, Any]]]:
    headers = {"Last-Event-ID": str(after)}
    async with client.stream("GET", f"/generations/{id_}/events", headers=headers) as response:
        return [item async for item in numbered(response)]


async def asked_while_it_runs(client: httpx2.AsyncClient, path: str) -> None:
    """Ask until an image is said to be running: between two turns, all are queued or done."""
    while True:
        unfinished = await client.get(path)
        assert unfinished.status_code == 202
        if "running" in {image["status"] for image in unfinished.json()["images"]}:
            return


async def ended(client: httpx2.AsyncClient, id_: str) -> httpx2.Response:
    """Ask for an answer until it is whole."""
    async with asyncio.timeout(30):
        while (response := await client.get(f"/generations/{id_}")).status_code == 202:  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.1)
    return response


def active() -> int:
    handle = serve.get_deployment_handle("Replica", PAIR)
    return sum(replica.active + replica.waiting for replica in handle.broadcast("status").results(timeout_s=10))


async def test_a_cut_stream_goes_on_and_each_picture_comes_once(client: httpx2.AsyncClient) -> None:
    """Whichever ingress replica answers: among four, both most likely have."""
    for _ in range(TRIES):
        got = await cut_after_the_first_picture(client, on_disconnect="wait")
        assert len([event for _, event in got if event["type"] == "image"]) < 4, "it was cut in the middle"
        rest = await resumed(client, got[0][1]["id"], got[-1][0])
        events = [event for _, event in got + rest]
        assert sorted(e["index"] for e in events if e["type"] == "image") == [0, 1, 2, 3]
        assert [e["type"] for e in events if e["type"] in ("completed", "error")] == ["completed"]
        numbers = [number for number, _ in got + rest]
        assert numbers == sorted(set(numbers))


async def test_a_stream_may_be_cut_again_and_again(client: httpx2.AsyncClient) -> None:
    got = await cut_after_the_first_picture(client, on_disconnect="wait", num_inference_steps=100)
    id_, cuts = got[0][1]["id"], 0
    while got[-1][1]["type"] != "completed":
        headers = {"Last-Event-ID": str(got[-1][0])}
        async with client.stream("GET", f"/generations/{id_}/events", headers=headers) as response:
            async for item in numbered(response):
                got.append(item)
                cuts += 1
                break
    assert cuts > 2
    assert sorted(event["index"] for _, event in got if event["type"] == "image") == [0, 1, 2, 3]


async def test_what_shall_finish_is_found_after_its_client_has_gone(client: httpx2.AsyncClient) -> None:
    got = await cut_after_the_first_picture(client, on_disconnect="finish", num_inference_steps=100, num_images=8)
    path = f"/generations/{got[0][1]['id']}"
    await asked_while_it_runs(client, path)
    response = await ended(client, got[0][1]["id"])
    assert [image["status"] for image in response.json()["images"]] == ["succeeded"] * 8
    (first,) = [event for _, event in got if event["type"] == "image"]
    assert response.json()["images"][first["index"]] == {k: v for k, v in first.items() if k != "type"}
    answers = await asyncio.gather(*[client.get(path) for _ in range(TRIES)])
    assert all(answer.json() == response.json() for answer in answers), "whichever ingress replica answers"
    await asyncio.sleep(KEEP_S)
    assert (await client.get(path)).status_code == 404


async def test_generate_finishes_for_a_client_that_hangs_up(client: httpx2.AsyncClient) -> None:
    id_ = str(uuid4())
    body = {**BODY, "id": id_, "on_disconnect": "finish", "num_inference_steps": 100}
    async with httpx2.AsyncClient(base_url=client.base_url, timeout=60) as own:
        request = asyncio.create_task(own.post("/generate", json=body))
        await asyncio.to_thread(eventually, lambda: active() == 4)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    response = await ended(client, id_)
    assert [image["status"] for image in response.json()["images"]] == ["succeeded"] * 4


async def test_who_leaves_for_good_costs_no_more_than_it_asked_for(client: httpx2.AsyncClient) -> None:
    long = {"num_inference_steps": 998, "num_images": 5}
    first = {**BODY, **long, "on_disconnect": "cancel"}
    async with client.stream("POST", "/stream", json=first) as response:
        await anext(numbered(response))
    await asyncio.to_thread(eventually, lambda: active() == 0, 5)
    async with client.stream("POST", "/stream", json={**first, "on_disconnect": "wait"}) as response:
        await anext(numbered(response))
    await asyncio.to_thread(eventually, lambda: active() > 0, 5)
    await asyncio.sleep(KEEP_S / 3)
    assert await asyncio.to_thread(active) > 0
    await asyncio.to_thread(eventually, lambda: active() == 0, KEEP_S)


async def test_what_was_finished_before_a_client_left_is_not_lost(client: httpx2.AsyncClient) -> None:
    """The others are cancelled as ever."""
    got = await cut_after_the_first_picture(client, num_images=8, num_inference_steps=100)
    await asyncio.to_thread(eventually, lambda: active() == 0, 5)
    answer = (await client.get(f"/generations/{got[0][1]['id']}")).json()
    statuses = [image["status"] for image in answer["images"]]
    assert set(statuses) == {"succeeded", "cancelled"}
    rest = await resumed(client, got[0][1]["id"], got[-1][0])
    assert [event["type"] for _, event in rest][-1] == "completed"
