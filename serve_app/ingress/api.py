"""The HTTP routes, over any service that can answer them. Knows neither Ray nor torch."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, Protocol

from fastapi import Depends, FastAPI, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from serve_app import __version__
from serve_app.config import AppArgs
from serve_app.ingress import playground, problems
from serve_app.ingress.body_limit import BodyLimit
from serve_app.ingress.requests import request_model
from serve_app.schemas import BatchResult, Cancelled, ErrorBody, Event, GenerateRequest, Health, ServiceStatus


class Service(Protocol):
    """What the routes need. `generate` and `stream` raise ServiceError for what they refuse."""

    def running(self) -> AbstractAsyncContextManager[None]: ...
    async def generate(self, request: GenerateRequest) -> BatchResult: ...
    def stream(self, request: GenerateRequest) -> AbstractAsyncContextManager[AsyncGenerator[Event]]: ...
    async def cancel(self, id: str, index: int | None = None) -> Cancelled: ...
    def health(self) -> Health: ...
    def status(self) -> ServiceStatus: ...


def create_api(service: Service, args: AppArgs) -> FastAPI:
    """Return the app of one service, with that service's limits in its request bodies."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    api = FastAPI(title="parallel-sdxl", version=__version__, lifespan=lifespan, redirect_slashes=False)
    api.add_middleware(BodyLimit, max_bytes=args.limits.max_body_bytes)
    problems.install(api)
    playground.install(api)
    Body = request_model(args)  # noqa: N806 - a class, made for this service

    @api.post("/generate", response_model=BatchResult, responses=_errors(413, 422, 429, 500, 503, 504))
    async def generate(body: Body) -> Response:  # type: ignore[valid-type]  # a class made at run time
        """Paint all images and return them together."""
        return StreamingResponse(_pieces(await service.generate(body)), media_type="application/json")

    async def accepted(body: Body) -> AsyncIterator[AsyncGenerator[Event]]:  # type: ignore[valid-type]  # as above
        # A dependency, because the route itself is a generator: once it runs, the status is 200.
        async with service.stream(body) as events:
            yield events

    @api.post("/stream", response_class=EventSourceResponse, responses=_errors(413, 422, 429, 503))
    async def stream(events: Annotated[AsyncGenerator[Event], Depends(accepted)]) -> AsyncIterator[ServerSentEvent]:
        """Paint all images and tell how it goes, as server-sent events."""
        async for event in events:
            yield ServerSentEvent(data=event, event=event.type)

    @api.delete("/generations/{id}", responses=_errors(404, 503))
    async def cancel(id: str) -> Cancelled:
        """Cancel all images of a running request that have not ended; repeatable. The id is in the stream's start event."""
        return await service.cancel(id)

    @api.delete("/generations/{id}/images/{index}", responses=_errors(404, 422, 503))
    async def cancel_image(id: str, index: int) -> Cancelled:
        """Cancel one image of a running request; the others go on. Repeatable."""
        return await service.cancel(id, index)

    @api.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        """Say whether images can be painted: 200 with at least one replica ready, 503 while starting."""
        state = service.health()
        return JSONResponse(state.model_dump(), 200 if state.status == "ready" else 503)

    @api.get("/status")
    async def status() -> ServiceStatus:
        """Say how busy the service is, at most a second ago."""
        return service.status()

    return api


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody} for status in statuses}


async def _pieces(result: BatchResult) -> AsyncIterator[bytes]:
    """Yield an answer as JSON in pieces, so that the event loop is never held up by many megabytes at once."""
    head = result.model_copy(update={"images": [], "grid": None}).model_dump_json(exclude={"images", "grid"})
    yield head[:-1].encode() + b',"images":['
    for i, image in enumerate(result.images):
        yield (b"," if i else b"") + image.model_dump_json(exclude={"type"}).encode()
    yield b'],"grid":' + (result.grid.model_dump_json().encode() if result.grid else b"null") + b"}"
