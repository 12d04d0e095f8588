"""Server-sent events beyond what FastAPI offers: their OpenAPI description, and streams from routes that may also
answer with plain JSON.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from copy import deepcopy
from functools import cache
from typing import Any, TypeVar

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from pydantic import BaseModel

from serve_app.errors import InternalError, ServiceError
from serve_app.ingress.problems import problem_of
from serve_app.schemas import Problem

logger = logging.getLogger("ray.serve")

Frame = TypeVar("Frame")

_PING_INTERVAL_S = 15.0


def described(*events: type[BaseModel], last: str | None = None) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a stream of these events, ended by the bare data `last`.

    The schema is that of one event's data, as in OpenAI's own document: OpenAPI 3.2 adds `itemSchema` for streams, but
    client generators do not support it yet. Models nested in the events are referenced, so they must also be part of
    another answer.
    """
    told = [deepcopy(_schema(event)) for event in events] + (
        [] if last is None else [{"type": "string", "const": last}]
    )
    description = (
        "Server-sent events. The schema describes the `data` of one event; its `type`, if any, is the event's name."
    )
    return {200: {"description": description, "content": {EventSourceResponse.media_type: {"schema": {"anyOf": told}}}}}


@cache  # the same events stand at many routes
def _schema(event: type[BaseModel]) -> dict[str, Any]:
    schema = event.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    schema.pop("$defs", None)
    return schema


async def ended(frames: AsyncGenerator[Frame], last: Callable[[Problem], Frame]) -> AsyncGenerator[Frame]:
    """Yield a stream's frames. Whatever raises becomes its last one: no stream ends in the middle of a sentence."""
    try:
        async with aclosing(frames):
            async for frame in frames:
                yield frame
    except ServiceError as error:
        yield last(problem_of(error))
    except Exception:
        logger.exception("a stream failed")
        yield last(problem_of(InternalError()))


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
