"""Forms (multipart/form-data), as clients send pictures that are files."""

import json
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, Mapping, Sequence, Set
from typing import Any, TypeVar, get_args, get_origin

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.routing import Match
from starlette.types import Scope

from serve_app.errors import InvalidRequest
from serve_app.ingress.offers import Bodies

KIND = "multipart/form-data"
_MOST_FILES = 20
"""More than any request has: a refusal of too many pictures then says so itself."""
_MOST_FIELDS = 1000

_PART = re.compile(r"(\w+)\[\]\[(\w+)\]")
"""`loras[][name]`: how OpenAI's SDKs send a list of objects, once for each of them."""

Form = TypeVar("Form", bound=BaseModel)


class FormRoute(APIRoute):
    """Takes forms alone. Another route of the same path, which must come later, takes the rest."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if _kind(Headers(scope=scope)) == KIND else (Match.NONE, {})


async def validated(http: Request, forms: Bodies[Form], pictures: Set[str], most_bytes: int) -> Form:
    """Return a request's form as an object; fields left empty are left out. Only `pictures` may be files.

    Raises ServiceError or RequestValidationError.
    """
    known = forms.default.model_fields
    lists = {name for name, field in known.items() if _is_list(field.annotation)}
    fields = await _read(http, lists, pictures, most_bytes)
    for name in (name for name, field in known.items() if _has_objects(field.annotation)):
        if objects := _objects(name, fields):
            fields[name] = objects
    for name in (name for name, field in known.items() if name in fields and _is_object(field.annotation)):
        found = _of_json(name, [fields[name]])
        fields[name] = found[0] if len(found) == 1 else found
    form = forms.class_for(fields)
    try:
        return form.model_validate(fields, strict=False)  # all fields of a form are texts
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from error


async def _read(http: Request, lists: Set[str], pictures: Set[str], most_bytes: int) -> dict[str, Any]:
    """Return the fields of a form; files are base64 as in JSON."""
    if (kind := _kind(http.headers)) != KIND:
        sent = f", not as {kind}" if kind else ""
        raise InvalidRequest(f"the body must be a form, sent with Content-Type: {KIND}{sent}")
    limits = {"max_files": _MOST_FILES, "max_fields": _MOST_FIELDS, "max_part_size": most_bytes}
    parser = _Parser(http.headers, http.stream(), **limits)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the body cannot be read as {KIND}: {error.message}") from error
    except UnicodeError as error:
        raise InvalidRequest(f"the body cannot be read as {KIND}: its texts are not in its charset") from error
    try:
        return await _fields(form, lists, pictures)
    finally:
        await form.close()


class _Parser(MultiPartParser):
    """Refuses a form that is cut off; Starlette's leaves out its last part without a word."""

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes], **limits: int) -> None:
        super().__init__(headers, self._whole(stream), **limits)
        self._ended = False

    def on_end(self) -> None:
        self._ended = True

    async def _whole(self, stream: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        async for chunk in stream:
            yield chunk
        if not self._ended:
            raise MultiPartException("it is cut off, the last boundary is missing")


async def _fields(form: FormData, lists: Set[str], pictures: Set[str]) -> dict[str, Any]:
    """Return the fields of a form; those with `[]` behind the name, and `lists`, are lists."""
    several = lists | {name.removesuffix("[]") for name in form if name.endswith("[]") or _PART.fullmatch(name)}
    fields: dict[str, list[str]] = {}
    for sent, value in form.multi_items():
        name = sent.removesuffix("[]")
        if isinstance(value, UploadFile) and name not in pictures:
            raise InvalidRequest(f"{name}: is sent as a file; only {' and '.join(sorted(pictures))} may be", name)
        if held := await _file(value, name) if isinstance(value, UploadFile) else value:
            fields.setdefault(name, []).append(held)
    if twice := next((name for name, held in fields.items() if len(held) > 1 and name not in several), None):
        raise InvalidRequest(f"{twice}: is sent more than once", twice)
    return {name: held if name in several else held[0] for name, held in fields.items()}


def _objects(name: str, fields: dict[str, Any]) -> list[Any]:
    """Return the objects of a list, sent as JSON or in parts, and take the parts out of the fields."""
    sent = {part: found[2] for part in fields if (found := _PART.fullmatch(part)) and found[1] == name}
    parts = {key: fields.pop(part) for part, key in sent.items()}
    return [*_of_json(name, fields.get(name, ())), *_of_parts(name, parts)]


def _of_json(name: str, texts: Sequence[str]) -> list[Any]:
    objects: list[Any] = []
    for text in texts:
        try:
            held = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{name}: must be JSON in a form, as it is in a JSON body", name) from error
        objects += held if isinstance(held, list) else [held]
    return objects


def _of_parts(name: str, parts: Mapping[str, list[str]]) -> list[Any]:
    """Put objects together. Parts are grouped by key, so that one left out in an object could be any object's."""
    if len({len(values) for values in parts.values()}) > 1:
        message = (
            f"{name}: {' and '.join(parts)} must be sent once for each of them; a form cannot tell whose is missing"
        )
        raise InvalidRequest(message, name)
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


async def _file(sent: UploadFile, name: str) -> str:
    """Return a file as base64; browsers send one without a name and content where none was chosen."""
    content = await sent.read()
    if sent.filename and not content:
        raise InvalidRequest(f"{name}: the file is empty", name)
    return b64encode(content).decode()


def _kind(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple) or any(_is_list(part) for part in get_args(annotation))


def _is_object(annotation: Any) -> bool:
    """Whether it is an object, or null."""
    parts = () if _is_list(annotation) else (annotation, *get_args(annotation))
    return any(isinstance(part, type) and issubclass(part, BaseModel) for part in parts)


def _has_objects(annotation: Any) -> bool:
    """Whether it is a list of objects."""
    parts = get_args(annotation)
    models = (isinstance(part, type) and issubclass(part, BaseModel) for part in parts)
    return (get_origin(annotation) in (list, tuple) and any(models)) or any(_has_objects(part) for part in parts)
