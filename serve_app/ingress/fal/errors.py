"""Errors in fal's format."""

from serve_app.ingress.fal.schemas import ErrorItem, FalErrorBody
from serve_app.ingress.problems import Dialect
from serve_app.schemas import Problem


def body_of(problem: Problem) -> FalErrorBody:
    """Return the body that reports a problem."""
    path = problem.param.split(".") if problem.param else []
    return FalErrorBody(detail=[ErrorItem(loc=["body", *path], msg=problem.message, type=problem.type)])


DIALECT = Dialect(prefix="/fal-ai/", model=FalErrorBody, body=lambda _, problem: body_of(problem))
