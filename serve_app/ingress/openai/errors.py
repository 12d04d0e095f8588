"""Errors in OpenAI's format."""

from typing import Literal

from serve_app.ingress.openai.schemas import OpenAIError, OpenAIErrorBody
from serve_app.ingress.problems import Dialect
from serve_app.schemas import Problem

# OpenAI's names for some of the service's error types.
_CODES = {
    "unauthorized": "invalid_api_key",
    "too_many_waiting": "rate_limit_exceeded",
    "invalid_request": "invalid_value",
}


def body_of(status: int, problem: Problem) -> OpenAIErrorBody:
    """Return the body that reports a problem."""
    code = _CODES.get(problem.type, problem.type)
    return OpenAIErrorBody(
        error=OpenAIError(message=problem.message, type=_type(status), param=problem.param, code=code)
    )


def _type(status: int) -> Literal["invalid_request_error", "rate_limit_error", "server_error"]:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


DIALECT = Dialect(prefix="/v1/", model=OpenAIErrorBody, body=body_of, invalid=400)
