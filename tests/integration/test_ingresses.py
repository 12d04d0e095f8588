"""Two ingress replicas: whichever gets the one call and the other."""

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from ray import serve
from ray.serve import RunTarget

from serve_app.app import build
from serve_app.config import AdmissionConfig, FilesConfig
from serve_app.fanout.pool import POLL_INTERVAL_S
from tests.integration.conftest import (
    REPLICAS,
    SMALL,
    Cluster,
    eventually,
    frames,
    ready_throughout,
    start_of,
    tiny_args,
)

TRIES = 10
LONG = {"prompt": "a red apple", **SMALL, "num_inference_steps": 998, "num_images": 2}


@pytest.fixture(scope="module")
def url(cluster: Cluster, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    url, files = f"{cluster.url}/two", FilesConfig(path=str(tmp_path_factory.mktemp("files")))
    room = AdmissionConfig(max_waiting_images=64)  # each ingress has half of it, and one may get all requests of a test
    args = tiny_args(tiny_path, ingress_replicas=2, files=files, admission=room)
    serve.run_many([RunTarget(build(args), name="two", route_prefix="/two")])
    with httpx2.Client(base_url=url, timeout=60) as http:
        eventually(lambda: ready_throughout(http, seconds=1.5 * POLL_INTERVAL_S))
    yield url
    serve.delete("two")


def finished() -> list[int]:
    """Ask each replica how many images it has finished, the fewest first."""
    replicas = serve.get_deployment_handle("Replica", "two").broadcast("status").results(timeout_s=10)
    return sorted(r.finished for r in replicas)


def test_they_share_the_fleet(url: str) -> None:
    before = finished()
    assert before[0] >= 1, "a warm-up each"
    with httpx2.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(8) as pool:
        body = {"prompt": "a", **SMALL, "num_images": 4, "seed": 3}
        answers = list(pool.map(lambda _: http.post("/generate", json=body).json(), range(8)))
    assert all("images" in answer for answer in answers), [answer["error"] for answer in answers if "error" in answer]
    assert all(image["status"] == "succeeded" for answer in answers for image in answer["images"])
    assert len({image["b64_json"] for answer in answers for image in answer["images"]}) == 4, "whoever took the request"
    assert len(before) == REPLICAS
    assert sum(finished()) == sum(before) + 8 * 4
    assert finished()[0] >= 8, "both have had their part"


async def test_a_cancellation_reaches_the_replica_that_holds_the_request(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        for _ in range(TRIES):
            async with client.stream("POST", "/stream", json=LONG) as response:
                stream = frames(response)
                id_ = await start_of(stream)
                assert (await client.delete(f"/generations/{id_}/images/0")).json() == {"id": id_, "cancelled": [0]}
                assert (await client.delete(f"/generations/{id_}/images/2")).status_code == 404
                assert (await client.delete(f"/generations/{id_}")).json() == {"id": id_, "cancelled": [0, 1]}
                assert [event["type"] async for event in stream][-1] == "completed"


async def test_a_file_is_found_by_all_of_them(url: str) -> None:
    body = {"prompt": "a", "size": "64x64", "num_inference_steps": 1, "seed": 3}
    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        (picture,) = (await client.post("/v1/images/generations", json=body)).json()["data"]
        answers = await asyncio.gather(
            *[client.post("/v1/images/generations", json={**body, "response_format": "url"}) for _ in range(TRIES)]
        )
        for answer in answers:
            (item,) = answer.json()["data"]
            assert item["url"].startswith(f"{url}/files/")
            assert (await client.get(item["url"])).content == base64.b64decode(picture["b64_json"])
