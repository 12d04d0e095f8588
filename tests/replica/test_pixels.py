import asyncio
import threading
from typing import Any

from serve_app.replica.pixels import PixelStore


async def test_pixels_are_put_and_referred_to() -> None:
    assert await PixelStore(put=lambda pixels: ("ref", pixels)).put("pixels") == ("ref", "pixels")


async def test_a_full_store_costs_only_the_pixels() -> None:
    room = threading.Event()

    def wait_for_room(pixels: Any) -> Any:
        room.wait(60)
        return pixels

    store = PixelStore(put=wait_for_room, timeout_s=0.1)
    assert await store.put("pixels") is None
    store._timeout_s = 60
    assert await asyncio.wait_for(store.put("more"), 10) is None, "none waits behind it"
    assert store._thread._work_queue.qsize() == 0
    room.set()
    assert store._overdue
    await asyncio.wrap_future(store._overdue)
    assert await store.put("later") == "later"


async def test_a_put_that_fails_costs_only_the_pixels() -> None:
    def fail(_: Any) -> Any:
        raise OSError("no space")

    assert await PixelStore(put=fail).put("pixels") is None
