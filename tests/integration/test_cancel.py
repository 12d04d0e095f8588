"""Images stop when their client goes away, and when they are cancelled by id."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from random import Random
from typing import Any

import httpx2
import pytest
from ray import serve

from serve_app.background import background
from serve_app.fanout.pool import POLL_INTERVAL_S, Pool
from serve_app.messages import Slot, SlotEvent
from tests.conftest import make_slot
from tests.integration.conftest import APP, SMALL, Running, eventually, frames, start_of, worker_logs

LONG = {"prompt": "a red apple", **SMALL, "num_inference_steps": 998}


@pytest.mark.parametrize("images", [2, 16])
def test_closing_a_stream_frees_the_replicas(app: Running, images: int) -> None:
    cancelled = app.metric("ray_psdxl_images_total", outcome="cancelled")

    with app.http.stream("POST", "/stream", json={**LONG, "num_images": images}) as response:
        for line in response.iter_lines():
            if line.startswith("event: preview"):
                break
    eventually(app.idle, seconds=5)
    eventually(
        lambda: app.metric("ray_psdxl_images_total", outcome="cancelled") - cancelled == min(images, 16), every=1
    )


def test_closed_streams_are_no_errors_in_the_log(app: Running) -> None:
    """Without `ErrorAsDisconnect`, one in eight is."""
    for _ in range(30):
        with app.http.stream("POST", "/stream", json=LONG) as response:
            next(line for line in response.iter_lines() if line.startswith("event: progress"))
        eventually(app.idle, seconds=5)
    assert [log.name for log in worker_logs() if "exceptions.TaskCancelledError" in log.read_text()] == []


async def test_a_client_that_hangs_up_on_generate_frees_the_replicas(app: Running) -> None:
    async with httpx2.AsyncClient(base_url=app.url) as client:
        request = asyncio.create_task(client.post("/generate", json={**LONG, "num_images": 4}))
        await asyncio.to_thread(eventually, lambda: sum(r.active for r in app.replicas()) == 4)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    await asyncio.to_thread(eventually, app.idle, 5)


async def test_other_requests_go_on(app: Running) -> None:
    async with httpx2.AsyncClient(base_url=app.url, timeout=60) as client:
        stays = asyncio.create_task(
            client.post("/generate", json={**LONG, "num_inference_steps": 100, "num_images": 2})
        )
        async with client.stream("POST", "/stream", json={**LONG, "num_images": 4}) as leaves:
            async for event in frames(leaves):
                if event["type"] == "preview":
                    break
        answer = (await stays).json()
        assert [image["status"] for image in answer["images"]] == ["succeeded"] * 2
    await asyncio.to_thread(eventually, app.idle, 5)


async def test_storms_of_clients_that_leave_at_any_moment_leave_no_trace(app: Running) -> None:
    """All 24 places in the queue are free again: two requests of twelve images are admitted at once."""
    random = Random(0)  # noqa: S311 - no secret

    async def come_and_go(client: httpx2.AsyncClient) -> None:
        body = {**LONG, "num_images": random.choice([1, 2, 4, 8])}
        try:
            async with asyncio.timeout(random.uniform(0, 0.5)):
                await client.post(random.choice(["/generate", "/stream"]), json=body)
        except (TimeoutError, httpx2.HTTPError):
            pass

    for _ in range(6):
        async with httpx2.AsyncClient(base_url=app.url, timeout=60) as client:
            await asyncio.gather(*[come_and_go(client) for _ in range(30)])
    await asyncio.to_thread(eventually, app.idle, 10)
    body = {**LONG, "num_images": 12}

    def both_are_taken() -> bool:
        with (
            app.http.stream("POST", "/stream", json=body) as first,
            app.http.stream("POST", "/stream", json=body) as second,
        ):
            return (first.status_code, second.status_code) == (200, 200)

    await asyncio.to_thread(eventually, both_are_taken, 10)


class Lossy:
    """A handle, or what is called through it, that loses every cancellation, as Serve now and then does."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def options(self, **options: Any) -> "Lossy":
        return Lossy(self._real.options(**options))

    @property
    def generate(self) -> "Lossy":
        return Lossy(self._real.generate)

    @property
    def stream(self) -> "Lossy":
        return Lossy(self._real.stream)

    def remote(self, *args: Any) -> "Lossy":
        return Lossy(self._real.remote(*args))

    def __aiter__(self) -> Any:
        return self._real

    def cancel(self) -> None: ...


@pytest.mark.parametrize("generate", [Pool.generate, Pool.stream])
async def test_replicas_stop_even_if_a_cancellation_is_lost(
    app: Running, generate: Callable[[Pool, Slot, str, float], AsyncGenerator[SlotEvent]]
) -> None:
    pool = Pool(Lossy(serve.get_deployment_handle("Replica", APP)))
    replica = (await asyncio.to_thread(app.replicas))[0].id
    slot = make_slot(num_inference_steps=998)

    async def generated() -> list[SlotEvent]:
        return [event async for event in generate(pool, slot, replica, time.monotonic() + 60)]

    def active() -> int:
        return sum(r.active for r in app.replicas())

    async with background(pool.keep_polling()):
        gone, waiting = asyncio.create_task(generated()), asyncio.create_task(generated())
        await asyncio.to_thread(eventually, lambda: active() == 2)
        gone.cancel()
        await asyncio.to_thread(eventually, lambda: active() == 1, 5)
        await asyncio.sleep(1.5 * POLL_INTERVAL_S)
        assert await asyncio.to_thread(active) == 1, "somebody still waits for this one"
        waiting.cancel()
        await asyncio.to_thread(eventually, app.idle, 5)
        await asyncio.gather(gone, waiting, return_exceptions=True)


async def test_one_image_is_cancelled_by_id_and_the_others_go_on(app: Running) -> None:
    body = {**LONG, "num_inference_steps": 100, "num_images": 3, "grid": True}
    async with (
        httpx2.AsyncClient(base_url=app.url, timeout=60) as client,
        client.stream("POST", "/stream", json=body) as response,
    ):
        stream = frames(response)
        url = f"/generations/{await start_of(stream)}/images/1"
        answers = [await client.delete(url) for _ in range(2)]
        events = [event async for event in stream]
        answers.append(await client.delete(url))
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["cancelled"] == [1] for answer in answers)
    assert [e["index"] for e in events if e["type"] == "cancelled"] == [1]
    assert sorted(e["index"] for e in events if e["type"] == "image") == [0, 2]
    assert events[-1]["type"] == "completed"


async def test_all_images_are_cancelled_by_id_and_the_replicas_are_free(app: Running) -> None:
    """Twelve: eight are being generated, four wait for a replica."""
    body = {**LONG, "num_images": 12}
    async with (
        httpx2.AsyncClient(base_url=app.url, timeout=60) as client,
        client.stream("POST", "/stream", json=body) as response,
    ):
        stream = frames(response)
        id_ = await start_of(stream)
        await asyncio.to_thread(eventually, lambda: sum(r.active for r in app.replicas()) == 8)
        answer = await client.delete(f"/generations/{id_}")
        assert answer.json() == {"id": id_, "cancelled": list(range(12))}
        events = [event async for event in stream]
        await asyncio.to_thread(eventually, app.idle, 5)
        await asyncio.to_thread(eventually, lambda: app.http.get("/status").json()["images_in_flight"] == 0, 5)
        assert (await client.delete(f"/generations/{id_}")).json() == answer.json()
    assert sorted(e["index"] for e in events if e["type"] == "cancelled") == list(range(12))
    assert [e["type"] for e in events][-1] == "completed"


@pytest.mark.parametrize("path", ["unknown", "unknown/images/0"])
def test_what_nobody_generates_is_a_404(app: Running, path: str) -> None:
    response = app.http.delete(f"/generations/{path}")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found")
