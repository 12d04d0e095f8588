"""The HTTP app: all APIs over one `Service`. Imports neither Ray nor torch."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from serve_app import __version__
from serve_app.config import AppArgs
from serve_app.ingress import a1111, fal, file_urls, native, openai, playground
from serve_app.ingress.answers import Answers
from serve_app.ingress.disconnect import Errors
from serve_app.ingress.fetching import Fetcher
from serve_app.ingress.files import Files
from serve_app.ingress.given import GivenPictures
from serve_app.ingress.live import LiveApi
from serve_app.ingress.middleware import middleware
from serve_app.ingress.openapi import DescribedApi
from serve_app.ingress.pictures import WithPictures
from serve_app.ingress.problems import Dialect, Problems
from serve_app.ingress.request_log import Count, nobody
from serve_app.ingress.requests import request_model
from serve_app.ingress.service import CanvasService


def create_api(
    generates: CanvasService,
    args: AppArgs,
    disconnect: Errors = (),
    answers: Answers | None = None,
    count: Count = nobody,
) -> LiveApi:
    """Return the app of one service; its request bodies have that service's limits.

    `disconnect` are errors that the server's `receive` raises instead of ASGI's message when the client has gone;
    `answers` hears of each answer, `count` of each request. Raises ValueError if API keys are missing or the folder of
    files cannot be used.
    """
    told = answers or Answers()
    return LiveApi(generates.running, lambda settings: _api(generates, settings, disconnect, told, count), args)


def _api(generates: CanvasService, args: AppArgs, disconnect: Errors, answers: Answers, count: Count) -> FastAPI:
    """Return the app of these settings; its lifespan is what they need."""
    stored = Files(Path(args.files.path), args.files) if args.files.path else None

    fetcher = Fetcher(args.pictures.fetch_from, args.limits.max_body_bytes)
    service = WithPictures(generates, GivenPictures(args.limits.max_picture_pixels, stored, fetcher), args.model)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with stored.tidied() if stored else nullcontext():
            yield

    problems = Problems(openai.DIALECT, fal.DIALECT, a1111.DIALECT, native.DIALECT)
    api = DescribedApi(
        title="parallel-sdxl",
        version=__version__,
        lifespan=lifespan,
        middleware=middleware(args, problems, disconnect, answers, count),
        redirect_slashes=False,
        # FastAPI's pages load scripts from a CDN; a self-hosted service must not send browsers there.
        docs_url=None,
        redoc_url=None,
        responses=native.DIALECT.responses(500),  # of routes that say nothing else
    )
    problems.install(api)

    request = request_model(args)
    api.include_router(native.health_router(service))
    api.include_router(
        native.router(service, request, stored, args.limits.max_body_bytes), **_described(args, native.DIALECT)
    )
    api.include_router(openai.router(service, request, args, stored, service.hole), **_described(args, openai.DIALECT))
    api.include_router(fal.router(service, request, args, stored), **_described(args, fal.DIALECT))
    if args.a1111.enabled:
        api.include_router(a1111.router(service, request, args, service.text_in), **_described(args, a1111.DIALECT))
    if stored:
        api.include_router(file_urls.router(stored, native.DIALECT))
    playground.install(api)
    return api


def _described(args: AppArgs, dialect: Dialect) -> dict[str, Any]:
    """Return router options that document what may happen to any request: a bug of ours, a missing key.

    `Keys` enforces the need for a key.
    """
    if not args.auth.required:
        return {"responses": dialect.responses(500)}
    return {"responses": dialect.responses(401, 500), "dependencies": [Depends(HTTPBearer(auto_error=False))]}
