"""Error answers, each in the format of the API that the request was sent to."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from serve_app.errors import InvalidRequest, ServiceError
from serve_app.schemas import FieldError, Problem

_HTTP_TYPES = {
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
}
_HTTP_MESSAGES = {
    404: "there is no such route; GET /openapi.json lists them",
    405: "this route takes another method; see the Allow header",
}

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_SECONDS = {"schema": {"type": "integer", "minimum": 1}}
_HEADERS: dict[int, dict[str, Any]] = {
    429: {"headers": {"Retry-After": {"description": "Seconds.", "required": True, **_SECONDS}}},
    503: {"headers": {"Retry-After": {"description": "Seconds, if known.", **_SECONDS}}},
}
"""The headers of errors in the OpenAPI document."""

_MOST_FAULTS = 5


@dataclass(frozen=True, slots=True)
class Dialect:
    """The error format of one API (all routes below `prefix`): `body` turns a status and a problem into a `model`.

    `invalid` is its status for bad input.
    """

    prefix: str
    model: type[BaseModel]
    body: Callable[[int, Problem], BaseModel]
    invalid: int = InvalidRequest.status

    def responses(self, *statuses: int) -> dict[int | str, dict[str, Any]]:
        """Return the OpenAPI description of these statuses."""
        return {status: {"model": self.model, **_HEADERS.get(status, {})} for status in statuses}


class Problems:
    """Answers every error of an app in the dialect of its path.

    The first dialect whose prefix matches wins, so the one without a prefix comes last.
    """

    def __init__(self, *dialects: Dialect) -> None:
        self._dialects = dialects

    def install(self, api: FastAPI) -> None:
        api.add_exception_handler(ServiceError, self._on_service_error)
        api.add_exception_handler(RequestValidationError, self._on_invalid)
        api.add_exception_handler(HTTPException, self._on_http)

    def answer(
        self, scope: Scope, status: int, problem: Problem, headers: Mapping[str, str] | None = None
    ) -> JSONResponse:
        """Return the answer to a refused request."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        dialect = next(d for d in self._dialects if f"{path}/".startswith(d.prefix))
        if status == InvalidRequest.status:
            status = dialect.invalid
        return JSONResponse(dialect.body(status, problem).model_dump(), status, headers)

    async def _on_service_error(self, request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ServiceError)
        headers = None if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
        return self.answer(request.scope, error.status, problem_of(error), headers)

    async def _on_invalid(self, request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        faults = error.errors()
        content_type = request.headers.get("content-type", "")
        message = "; ".join(_sentence(fault, content_type) for fault in faults[:_MOST_FAULTS])
        if len(faults) > _MOST_FAULTS:
            message += f"; and {len(faults) - _MOST_FAULTS} more"
        return self.answer(
            request.scope,
            InvalidRequest.status,
            Problem(type=InvalidRequest.type, message=message, param=_param(faults[0])),
        )

    async def _on_http(self, request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 400:  # FastAPI's status for a body that Python's JSON parser cannot read
            message = _unread(error.__cause__, request.headers.get("content-type", ""))
            return self.answer(request.scope, InvalidRequest.status, Problem(type=InvalidRequest.type, message=message))
        headers = _allow(request, error) if error.status_code == 405 else error.headers
        message = _HTTP_MESSAGES.get(error.status_code, error.detail)
        problem = Problem(type=_HTTP_TYPES.get(error.status_code, "http_error"), message=message)
        return self.answer(request.scope, error.status_code, problem, headers)


def problem_of(error: ServiceError) -> Problem:
    return Problem(type=error.type, message=error.message, param=error.param)


def _allow(request: Request, error: HTTPException) -> Mapping[str, str] | None:
    """Return the header that names all methods of a path. Starlette's names those of its first route."""

    def is_taken(method: str) -> bool:
        return any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)

    taken = list(filter(is_taken, _METHODS))
    return {"Allow": ", ".join(taken)} if taken else error.headers


def _param(fault: dict[str, Any]) -> str | None:
    """Return the path of the wrong field, such as `seeds.1`, or None if the whole body is wrong."""
    if fault["type"] == "json_invalid":
        return None
    if isinstance(error := fault.get("ctx", {}).get("error"), FieldError):
        return error.field
    path: Sequence[str | int] = fault["loc"][1:]
    return ".".join(map(str, path)) or None


def _unread(cause: BaseException | None, content_type: str) -> str:
    """Return why a body could not be read as JSON."""
    match cause:
        case UnicodeDecodeError() if cause.encoding.startswith("utf-8"):
            charset = _charset(content_type)
            declared = "" if charset in ("utf-8", "utf8") else f", not {charset}"
            where = f"at byte {cause.start} (0x{cause.object[cause.start]:02x})"
            return f"the body is not UTF-8 {where}; JSON must be UTF-8{declared}"
        case UnicodeDecodeError():
            return f"the body looks like {cause.encoding} but is not; JSON must be UTF-8"
        case RecursionError():
            return "the body holds lists or objects nested too deeply"
        case ValueError():
            return "the body holds a number with too many digits"
        case _:
            return "the body is not valid JSON"


def _sentence(fault: dict[str, Any], content_type: str) -> str:
    if fault["type"] == "json_invalid":
        return f"the body is not valid JSON: {fault['ctx']['error']}"
    if _param(fault) is None and fault["type"] in ("missing", "model_attributes_type", "dict_type"):
        return f"the body must be a JSON object, sent with Content-Type: application/json{_sent_as(content_type)}"
    if fault["type"] in ("model_attributes_type", "model_type", "dict_type"):
        return f"{_param(fault)}: must be an object with named fields"
    if fault["type"] == "extra_forbidden":
        return f"{_param(fault) or repr('')}: no such field"
    if fault["type"] in ("int_type", "float_type", "finite_number") and _is_beyond_floats(fault["input"]):
        return f"{_param(fault)}: must be a finite number that fits a float"
    if fault["type"] == "too_long":
        given, most = fault["ctx"]["actual_length"], fault["ctx"]["max_length"]
        return f"{_param(fault)}: at most {most} may be given, not {given}; leave some out"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{_param(fault)}: {message}" if _param(fault) else message


def _sent_as(content_type: str) -> str:
    kind = content_type.partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    return "" if not kind or is_json else f", not as {kind}"


def _charset(content_type: str) -> str:
    message = Message()
    message["content-type"] = content_type
    return message.get_content_charset("utf-8")


def _is_beyond_floats(value: Any) -> bool:
    """Return whether this is a number that no finite float holds: too large, infinite or NaN."""
    return isinstance(value, int | float) and not abs(value) <= sys.float_info.max
