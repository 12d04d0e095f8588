"""The HTTP app: its APIs put together, over any service that can answer them. Knows neither Ray nor torch."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware

from serve_app import __version__
from serve_app.config import AppArgs
from serve_app.ingress import fal, files, native, openai, playground
from serve_app.ingress.bodies import PlainBodies
from serve_app.ingress.files import Files
from serve_app.ingress.head import HeadAsGet
from serve_app.ingress.keys import KeyRing, Keys
from serve_app.ingress.openapi import DescribedApi
from serve_app.ingress.prefix import PrefixAsFolder
from serve_app.ingress.problems import Dialect, Problems
from serve_app.ingress.requests import request_model
from serve_app.ingress.service import Service


def create_api(service: Service, args: AppArgs) -> FastAPI:
    """Return the app of one service, with that service's limits in its request bodies.

    Raises ValueError where its API keys are missing or its files' folder cannot be used.
    """
    stored = Files(Path(args.files.path), args.files) if args.files.path else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running(), stored.tidied() if stored else nullcontext():
            yield

    api = DescribedApi(
        title="parallel-sdxl",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        # FastAPI's pages load their scripts from a CDN, to which a self-hosted service must send nobody.
        docs_url=None,
        redoc_url=None,
    )
    problems = Problems(openai.DIALECT, fal.DIALECT, native.DIALECT)
    problems.install(api)
    _guard(api, args, problems)

    request = request_model(args)
    api.include_router(native.health_router(service))
    api.include_router(native.router(service, request, stored), **_described(args, native.DIALECT))
    api.include_router(openai.router(service, request, args, stored), **_described(args, openai.DIALECT))
    api.include_router(fal.router(service, request, args, stored), **_described(args, fal.DIALECT))
    if stored:
        api.include_router(files.router(stored, native.DIALECT))
    playground.install(api)
    return api


def _guard(api: FastAPI, args: AppArgs, problems: Problems) -> None:
    """Put what every request must pass before the routes; the last added comes first."""
    api.add_middleware(HeadAsGet)
    api.add_middleware(PlainBodies, max_bytes=args.limits.max_body_bytes)
    if args.auth.required:
        api.add_middleware(Keys, ring=KeyRing(args.auth), problems=problems)
    if args.cors.allow_origins:
        # Before the keys: a browser asks for leave without one.
        api.add_middleware(
            CORSMiddleware,
            allow_origins=args.cors.allow_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    api.add_middleware(PrefixAsFolder)


def _described(args: AppArgs, dialect: Dialect) -> dict[str, Any]:
    """Return what makes OpenAPI say that routes need a key, which `Keys` sees to."""
    if not args.auth.required:
        return {}
    return {"dependencies": [Depends(HTTPBearer(auto_error=False))], "responses": dialect.responses(401)}
