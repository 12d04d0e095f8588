"""JSON answers of many megabytes."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json


async def in_pieces(answer: BaseModel) -> AsyncIterator[bytes]:
    """Yield an answer as JSON, one list item at a time, so that it never blocks the event loop for long."""
    text = [b"{"]
    for field in type(answer).model_fields:
        value = getattr(answer, field)
        text.append(b'"%s":' % field.encode())
        if isinstance(value, list):
            text.append(b"[")
            for i, item in enumerate(value):
                yield b"".join([*text, b"," if i else b"", *_json(item)])
                text = []
            text.append(b"]")
        else:
            text += _json(value)
        text.append(b",")
    yield b"".join(text[:-1]) + b"}"


def _json(value: Any) -> Sequence[bytes]:
    """Return the parts of what `to_json` does. A file is one as it is: in base64 there is nothing to escape."""
    file = getattr(value, "b64_json", None)
    if file is None:
        return [to_json(value)]
    without: BaseModel = value.model_copy(update={"b64_json": ""})
    # Found nowhere else: inside a text, each quotation mark follows a backslash.
    before, after = to_json(without).split(b'"b64_json":""', 1)
    return [before, b'"b64_json":"', file.encode("ascii"), b'"', after]
