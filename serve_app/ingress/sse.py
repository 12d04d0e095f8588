"""Server-sent events beyond what FastAPI offers: their OpenAPI description, and streams from routes that may also
answer with plain JSON.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from pydantic import BaseModel

_PING_INTERVAL_S = 15.0


def described(*events: type[BaseModel], last: str | None = None) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a stream of these events, ended by the bare data `last`.

    The schema is that of one event's data, as in OpenAI's own document: OpenAPI 3.2 adds `itemSchema` for streams, but
    client generators do not support it yet. Models nested in the events are referenced, so they must also be part of
    another answer.
    """
    told = [_schema(event) for event in events] + ([] if last is None else [{"type": "string", "const": last}])
    description = (
        "Server-sent events. The schema describes the `data` of one event; its `type`, if any, is the event's name."
    )
    return {200: {"description": description, "content": {EventSourceResponse.media_type: {"schema": {"anyOf": told}}}}}


def _schema(event: type[BaseModel]) -> dict[str, Any]:
    schema = event.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    schema.pop("$defs", None)
    return schema


def streamed(frames: AsyncGenerator[bytes]) -> EventSourceResponse:
    """Return a streaming answer that sends pings while no frames come, as FastAPI does for generator routes."""
    return EventSourceResponse(_with_pings(frames), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def _with_pings(frames: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    following = asyncio.ensure_future(anext(frames, None))
    try:
        while True:
            await asyncio.wait([following], timeout=_PING_INTERVAL_S)
            if not following.done():
                yield KEEPALIVE_COMMENT
            elif (frame := following.result()) is None:
                return
            else:
                yield frame
                following = asyncio.ensure_future(anext(frames, None))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await frames.aclose()
