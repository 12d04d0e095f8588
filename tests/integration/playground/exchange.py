"""What goes between the page and the service, to look at and to change."""

import json
from typing import Any

from playwright.sync_api import Request, Route


def changed_events(route: Route, change: Any, *, with_ids: bool = False) -> None:
    """Answer a stream with its events changed: `change(event)` returns the event to send, or None to end there.

    Without ids, as from an older service, the page cannot go on after the end.
    """
    response = route.fetch(timeout=60_000)
    frames = []
    for frame in response.text().strip().split("\n\n"):
        lines = frame.splitlines()
        if len(lines) != 3:  # a ping
            continue
        event = change(json.loads(lines[1].removeprefix("data: ")))
        if event is None:
            break
        id_ = f"{lines[2]}\n" if with_ids else ""
        frames.append(f"event: {event['type']}\ndata: {json.dumps(event)}\n{id_}\n")
    route.fulfill(response=response, body="".join(frames))


def fail_seed(seed: int) -> Any:
    def change(event: dict[str, Any]) -> dict[str, Any]:
        if event["type"] == "image" and event["seed"] == seed:
            return {
                "type": "failed",
                "index": event["index"],
                "seed": seed,
                "error": {"type": "out_of_memory", "message": "no room for it"},
            }
        return event

    return change


def body_of(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request.post_data or "{}")
    return body
