"""Answers to faults of ours."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import InternalError
from serve_app.ingress.problems import Problems, problem_of


class AnsweredFaults:
    """Answers what no handler of the app takes with a 500, and lets the server log it.

    Starlette would answer too, but outside of all middleware: other web pages could not read it without CORS headers.
    """

    def __init__(self, app: ASGIApp, problems: Problems) -> None:
        self._app = app
        self._problems = problems

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except Exception:
            if scope["type"] == "http" and not started:
                problem = problem_of(InternalError())
                await self._problems.answer(scope, InternalError.status, problem)(scope, receive, send)
            raise
