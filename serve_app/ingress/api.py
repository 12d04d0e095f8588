"""The HTTP app: its APIs put together, over any service that can answer them. Knows neither Ray nor torch."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from serve_app import __version__
from serve_app.config import AppArgs
from serve_app.ingress import fal, file_urls, native, openai, playground
from serve_app.ingress.disconnect import Errors
from serve_app.ingress.files import Files
from serve_app.ingress.middleware import middleware
from serve_app.ingress.openapi import DescribedApi
from serve_app.ingress.problems import Dialect, Problems
from serve_app.ingress.requests import request_model
from serve_app.ingress.service import Service


def create_api(service: Service, args: AppArgs, disconnect: Errors = ()) -> FastAPI:
    """Return the app of one service, with that service's limits in its request bodies.

    `disconnect` is what the server's `receive` raises where the client has gone; ASGI has a message for it instead.
    Raises ValueError where its API keys are missing or its files' folder cannot be used.
    """
    stored = Files(Path(args.files.path), args.files) if args.files.path else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running(), stored.tidied() if stored else nullcontext():
            yield

    problems = Problems(openai.DIALECT, fal.DIALECT, native.DIALECT)
    api = DescribedApi(
        title="parallel-sdxl",
        version=__version__,
        lifespan=lifespan,
        middleware=middleware(args, problems, disconnect),
        redirect_slashes=False,
        # FastAPI's pages load their scripts from a CDN, to which a self-hosted service must send nobody.
        docs_url=None,
        redoc_url=None,
    )
    problems.install(api)

    request = request_model(args)
    api.include_router(native.health_router(service))
    api.include_router(native.router(service, request, stored), **_described(args, native.DIALECT))
    api.include_router(openai.router(service, request, args, stored), **_described(args, openai.DIALECT))
    api.include_router(fal.router(service, request, args, stored), **_described(args, fal.DIALECT))
    if stored:
        api.include_router(file_urls.router(stored, native.DIALECT))
    playground.install(api)
    return api


def _described(args: AppArgs, dialect: Dialect) -> dict[str, Any]:
    """Return what makes OpenAPI say that routes need a key, which `Keys` sees to."""
    if not args.auth.required:
        return {}
    return {"dependencies": [Depends(HTTPBearer(auto_error=False))], "responses": dialect.responses(401)}
