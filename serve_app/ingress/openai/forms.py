"""Forms (multipart/form-data), as OpenAI's SDKs send pictures."""

from base64 import b64encode
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from serve_app.errors import InvalidRequest

_KIND = "multipart/form-data"
_MOST_FILES = 20
"""More than any request has: a refusal of too many pictures then says so itself."""
_MOST_FIELDS = 1000

Form = TypeVar("Form", bound=BaseModel)


async def validated(http: Request, form: type[Form], most_bytes: int) -> Form:
    """Return a request's form as an object; fields left empty are left out. Raises RequestValidationError."""
    fields = await _read(http, most_bytes)
    try:
        return form.model_validate(fields, strict=False)  # all fields of a form are texts
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from error


async def _read(http: Request, most_bytes: int) -> dict[str, Any]:
    """Return the fields of a form; files are base64 as in JSON, and `name[]` are the items of a list."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _KIND:
        sent = f", not as {kind}" if kind else ""
        raise InvalidRequest(f"the body must be a form, sent with Content-Type: {_KIND}{sent}")
    limits: dict[str, int] = {"max_files": _MOST_FILES, "max_fields": _MOST_FIELDS, "max_part_size": most_bytes}
    try:
        async with http.form(**limits) as form:
            return await _fields(form)
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise InvalidRequest(f"the body cannot be read as {_KIND}: {error.detail}") from error


async def _fields(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        held = b64encode(await value.read()).decode() if isinstance(value, UploadFile) else value
        if name.endswith("[]"):
            fields.setdefault(name.removesuffix("[]"), []).append(held)
        elif name in fields:
            raise InvalidRequest(f"{name}: is sent more than once", name)
        elif held:
            fields[name] = held
    return fields
