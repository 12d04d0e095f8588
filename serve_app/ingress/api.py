"""The HTTP app: all APIs over one `Service`. Imports neither Ray nor torch."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from serve_app import __version__
from serve_app.config import ONLY_MODEL, AppArgs
from serve_app.ingress import a1111, fal, file_urls, native, openai, playground
from serve_app.ingress.answers import Answers
from serve_app.ingress.disconnect import Errors
from serve_app.ingress.fetching import Fetcher
from serve_app.ingress.files import Files
from serve_app.ingress.given import GivenPictures
from serve_app.ingress.live import LiveApi
from serve_app.ingress.middleware import middleware
from serve_app.ingress.offers import Offer, Offers
from serve_app.ingress.openapi import DescribedApi
from serve_app.ingress.pictures import WithPictures, reading_threads
from serve_app.ingress.problems import Dialect, Problems
from serve_app.ingress.request_log import Count, nobody
from serve_app.ingress.requests import request_model
from serve_app.ingress.service import Service


def create_api(
    service: Service,
    args: AppArgs,
    disconnect: Errors = (),
    answers: Answers | None = None,
    count: Count = nobody,
) -> LiveApi:
    """Return the app of a service; its request bodies have the limits of its models.

    `disconnect` are errors that the server's `receive` raises instead of ASGI's message when the client has gone;
    `answers` hears of each answer, `count` of each request. Raises ValueError if API keys are missing or the folder of
    files cannot be used.
    """
    told = answers or Answers()
    return LiveApi(service.running, lambda settings: _api(service, settings, disconnect, told, count), args)


def _api(service: Service, args: AppArgs, disconnect: Errors, answers: Answers, count: Count) -> FastAPI:
    """Return the app of these settings; its lifespan is what they need."""
    stored = Files(Path(args.files.path), args.files) if args.files.path else None
    offers = _offers(service, args, stored)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with stored.tidied() if stored else nullcontext():
            yield

    problems = Problems(openai.DIALECT, fal.DIALECT, a1111.DIALECT, native.DIALECT)
    api = DescribedApi(
        title="parallel-sdxl",
        version=__version__,
        description="Bounds and defaults of bodies are those of the default model; `GET /models` has each one's.",
        lifespan=lifespan,
        middleware=middleware(args, problems, disconnect, answers, count),
        redirect_slashes=False,
        # FastAPI's pages load scripts from a CDN; a self-hosted service must not send browsers there.
        docs_url=None,
        redoc_url=None,
        responses=native.DIALECT.responses(500),  # of routes that say nothing else
    )
    problems.install(api)

    most_bytes = args.max_body_bytes
    api.include_router(native.health_router(service))
    api.include_router(native.router(service, offers, stored, most_bytes), **_described(args, native.DIALECT))
    api.include_router(openai.router(offers, stored, most_bytes), **_described(args, openai.DIALECT))
    api.include_router(fal.router(offers, stored), **_described(args, fal.DIALECT))
    if args.a1111.enabled:
        api.include_router(a1111.router(service, offers), **_described(args, a1111.DIALECT))
    if stored:
        api.include_router(file_urls.router(stored, native.DIALECT))
    playground.install(api)
    return api


def _offers(service: Service, args: AppArgs, stored: Files | None) -> Offers:
    threads = reading_threads()

    def offer(name: str, own: AppArgs) -> Offer:
        fetcher = Fetcher(own.pictures.fetch_from, own.limits.max_body_bytes)
        given = GivenPictures(own.limits.max_picture_pixels, stored, fetcher)
        generates = WithPictures(service.of(name), given, own.model, threads)
        return Offer(None if name == ONLY_MODEL else name, own, request_model(own), generates)

    return Offers(*(offer(name, own) for name, own in args.served.items()))


def _described(args: AppArgs, dialect: Dialect) -> dict[str, Any]:
    """Return router options that document what may happen to any request: a bug of ours, a missing key.

    `Keys` enforces the need for a key.
    """
    if not args.auth.required:
        return {"responses": dialect.responses(500)}
    return {"responses": dialect.responses(401, 500), "dependencies": [Depends(HTTPBearer(auto_error=False))]}
