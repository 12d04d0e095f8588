"""The HTTP app, put together from the APIs it speaks, over any service that can answer them. Knows neither Ray nor torch."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from fastapi import FastAPI

from serve_app import __version__
from serve_app.config import AppArgs
from serve_app.ingress import fal, files, native, openai, playground
from serve_app.ingress.body_limit import BodyLimit
from serve_app.ingress.files import Files
from serve_app.ingress.problems import Problems
from serve_app.ingress.requests import request_model
from serve_app.ingress.service import Service


def create_api(service: Service, args: AppArgs) -> FastAPI:
    """Return the app of one service, with that service's limits in its request bodies."""

    stored = Files(Path(args.files.path), args.files) if args.files.path else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running(), stored.tidied() if stored else nullcontext():
            yield

    api = FastAPI(title="parallel-sdxl", version=__version__, lifespan=lifespan, redirect_slashes=False)
    api.add_middleware(BodyLimit, max_bytes=args.limits.max_body_bytes)
    Problems(openai.DIALECT, fal.DIALECT, native.DIALECT).install(api)
    request = request_model(args)
    api.include_router(native.router(service, request))
    api.include_router(openai.router(service, request, args, stored))
    api.include_router(fal.router(service, request, args, stored))
    if stored:
        api.include_router(files.router(stored, native.DIALECT))
    playground.install(api)
    return api
