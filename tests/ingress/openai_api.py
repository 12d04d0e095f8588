"""The route of OpenAI's API that generates, what its streams say, and images that fail."""

import json
from typing import Any

from serve_app.errors import SlotFailed
from serve_app.messages import Slot

URL = "/v1/images/generations"


def frames_of(response: Any) -> list[dict[str, Any]]:
    """Return a stream's events, having checked that each is named by its type and that the last frame is OpenAI's."""
    *sent, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    events = []
    for frame in sent:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def second_fails(slot: Slot) -> None:
    if slot.index == 1:
        raise SlotFailed("out_of_memory", "no room")


async def all_fail(slot: Slot) -> None:
    raise SlotFailed("out_of_memory", "no room")
