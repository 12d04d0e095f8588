"""Two ingress replicas: whichever gets the one call and the other."""

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor

import httpx2
from ray import serve

from tests.integration.conftest import PAIR, REPLICAS, SMALL, frames, start_of

TRIES = 10
LONG = {"prompt": "a red apple", **SMALL, "num_inference_steps": 998, "num_images": 2}


def finished() -> list[int]:
    """Ask each replica how many images it has finished, the fewest first."""
    replicas = serve.get_deployment_handle("Replica", PAIR).broadcast("status").results(timeout_s=10)
    return sorted(r.finished for r in replicas)


def test_they_share_the_fleet(pair: str) -> None:
    before = finished()
    assert before[0] >= 1, "a warm-up each"
    with httpx2.Client(base_url=pair, timeout=60) as http, ThreadPoolExecutor(8) as pool:
        body = {"prompt": "a", **SMALL, "num_images": 4, "seed": 3}
        answers = list(pool.map(lambda _: http.post("/generate", json=body).json(), range(8)))
    assert all("images" in answer for answer in answers), [answer["error"] for answer in answers if "error" in answer]
    assert all(image["status"] == "succeeded" for answer in answers for image in answer["images"])
    assert len({image["b64_json"] for answer in answers for image in answer["images"]}) == 4, "whoever took the request"
    assert len(before) == REPLICAS
    assert sum(finished()) == sum(before) + 8 * 4
    assert finished()[0] >= 8, "both have had their part"


async def test_a_cancellation_reaches_the_replica_that_holds_the_request(pair: str) -> None:
    async with httpx2.AsyncClient(base_url=pair, timeout=60) as client:
        for _ in range(TRIES):
            async with client.stream("POST", "/stream", json=LONG) as response:
                stream = frames(response)
                id_ = await start_of(stream)
                assert (await client.delete(f"/generations/{id_}/images/0")).json() == {"id": id_, "cancelled": [0]}
                assert (await client.delete(f"/generations/{id_}/images/2")).status_code == 404
                assert (await client.delete(f"/generations/{id_}")).json() == {"id": id_, "cancelled": [0, 1]}
                assert [event["type"] async for event in stream][-1] == "completed"


async def test_a_file_is_found_by_all_of_them(pair: str) -> None:
    body = {"prompt": "a", "size": "64x64", "num_inference_steps": 1, "seed": 3}
    async with httpx2.AsyncClient(base_url=pair, timeout=60) as client:
        (picture,) = (await client.post("/v1/images/generations", json=body)).json()["data"]
        answers = await asyncio.gather(
            *[client.post("/v1/images/generations", json={**body, "response_format": "url"}) for _ in range(TRIES)]
        )
        for answer in answers:
            (item,) = answer.json()["data"]
            assert item["url"].startswith(f"{pair}/files/")
            assert (await client.get(item["url"])).content == base64.b64decode(picture["b64_json"])
