"""JSON answers of many megabytes."""

from collections.abc import AsyncIterator

from pydantic import BaseModel
from pydantic_core import to_json


async def in_pieces(answer: BaseModel) -> AsyncIterator[bytes]:
    """Yield an answer as JSON, one list item at a time, so that it never blocks the event loop for long."""
    text = b"{"
    for field in type(answer).model_fields:
        value = getattr(answer, field)
        text += b'"%s":' % field.encode()
        if isinstance(value, list):
            text += b"["
            for i, item in enumerate(value):
                yield text + (b"," if i else b"") + to_json(item)
                text = b""
            text += b"],"
        else:
            text += to_json(value) + b","
    yield text.removesuffix(b",") + b"}"
