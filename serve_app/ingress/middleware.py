"""The middleware in front of all routes."""

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from serve_app.config import AppArgs, AuthConfig, CorsConfig
from serve_app.ingress.answers import Answers, CountedAnswers
from serve_app.ingress.body_limits import PlainBodies
from serve_app.ingress.disconnect import ErrorAsDisconnect, Errors
from serve_app.ingress.head_requests import HeadAsGet
from serve_app.ingress.keys import KeyRing, Keys
from serve_app.ingress.prefix import PrefixAsFolder
from serve_app.ingress.problems import Problems
from serve_app.ingress.request_log import GPU_SECONDS, Count, LoggedRequests
from serve_app.ingress.server_errors import AnsweredFaults


def middleware(
    args: AppArgs, problems: Problems, disconnect: Errors, answers: Answers, count: Count
) -> list[Middleware]:
    """Return the middleware of one service, outermost first. Raises ValueError if API keys are missing."""
    return [
        Middleware(CountedAnswers, answers=answers),
        Middleware(LoggedRequests, count=count),
        Middleware(ErrorAsDisconnect, errors=disconnect),
        Middleware(PrefixAsFolder),
        *_cors(args.cors),  # before the keys: a browser's preflight request has none
        Middleware(AnsweredFaults, problems=problems),
        *_keys(args.auth, problems),
        Middleware(PlainBodies, max_bytes=args.max_body_bytes),
        Middleware(HeadAsGet),
    ]


def _cors(cors: CorsConfig) -> list[Middleware]:
    if not cors.allow_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=cors.allow_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Retry-After", GPU_SECONDS],
        )
    ]


def _keys(auth: AuthConfig, problems: Problems) -> list[Middleware]:
    return [Middleware(Keys, ring=KeyRing(auth), problems=problems)] if auth.required else []
