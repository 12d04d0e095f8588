"""Every way a request can be refused, as one shape of body: {"error": {"type", "message", "param"}}."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve_app.errors import InternalError, InvalidRequest, ServiceError, TooManyWaiting
from serve_app.schemas import ErrorBody, FieldError, Problem

_HTTP_TYPES = {401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}
_HTTP_MESSAGES = {
    404: "there is no such route; GET /openapi.json lists them",
    405: "this route takes another method; see the Allow header",
}

_MOST_FAULTS = 5


def install(api: FastAPI) -> None:
    """Answer every error of an app in the service's own shape."""
    api.add_exception_handler(ServiceError, _on_service_error)
    api.add_exception_handler(RequestValidationError, _on_invalid)
    api.add_exception_handler(HTTPException, _on_http)
    api.add_exception_handler(Exception, _on_fault)


def _answer(status: int, problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(ErrorBody(error=problem).model_dump(), status, headers)


async def _on_service_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, TooManyWaiting) else None
    return _answer(error.status, Problem(type=error.type, message=error.message, param=error.param), headers)


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    message = "; ".join(_sentence(fault) for fault in faults[:_MOST_FAULTS])
    if len(faults) > _MOST_FAULTS:
        message += f"; and {len(faults) - _MOST_FAULTS} more"
    return _answer(InvalidRequest.status, Problem(type=InvalidRequest.type, message=message, param=_param(faults[0])))


async def _on_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's word for bytes that its JSON parser chokes on
        return _answer(InvalidRequest.status, Problem(type=InvalidRequest.type, message="the body is not valid JSON"))
    message = _HTTP_MESSAGES.get(error.status_code, error.detail)
    return _answer(error.status_code, Problem(type=_HTTP_TYPES.get(error.status_code, "http_error"), message=message), dict(error.headers or {}))


async def _on_fault(_: Request, __: Exception) -> JSONResponse:
    fault = InternalError()
    return _answer(fault.status, Problem(type=fault.type, message=fault.message))


def _param(fault: dict[str, Any]) -> str | None:
    """Return the path of the field that is wrong, such as `seeds.1`, or None if it is the body as a whole."""
    if fault["type"] == "json_invalid":
        return None
    if isinstance(error := fault.get("ctx", {}).get("error"), FieldError):
        return error.field
    path: Sequence[str | int] = fault["loc"][1:]
    return ".".join(map(str, path)) or None


def _sentence(fault: dict[str, Any]) -> str:
    if fault["type"] == "json_invalid":
        return f"the body is not valid JSON: {fault['ctx']['error']}"
    if _param(fault) is None and fault["type"] in ("missing", "model_attributes_type", "dict_type"):
        return "the body must be a JSON object, sent with Content-Type: application/json"
    if fault["type"] == "extra_forbidden":
        return f"{_param(fault)}: there is no such field"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{_param(fault)}: {message}" if _param(fault) else message
