"""Errors in A1111's format."""

from serve_app.ingress.a1111.schemas import A1111ErrorBody
from serve_app.ingress.problems import Dialect
from serve_app.schemas import Problem


def body_of(problem: Problem) -> A1111ErrorBody:
    """Return the body that reports a problem."""
    return A1111ErrorBody(
        error=problem.type, detail=problem.message, body="", errors=problem.message, param=problem.param
    )


DIALECT = Dialect(prefix="/sdapi/", model=A1111ErrorBody, body=lambda _, problem: body_of(problem))
