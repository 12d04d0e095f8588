"""The service's own API: /generate, /stream, /generations, /health, /status."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, get_args

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from serve_app.ingress import sse
from serve_app.ingress.file_urls import Urls, urls_of
from serve_app.ingress.files import Files
from serve_app.ingress.pieces import in_pieces
from serve_app.ingress.problems import Dialect
from serve_app.ingress.service import Service
from serve_app.ingress.stored import StoredEvent, StoredResult, stored_events, stored_result
from serve_app.schemas import (
    BatchResult,
    Cancelled,
    ErrorBody,
    ErrorEvent,
    Event,
    GenerateRequest,
    Health,
    Problem,
    ServiceStatus,
)

DIALECT = Dialect(prefix="", model=ErrorBody, body=lambda _, problem: ErrorBody(error=problem))

AnyResult = BatchResult | StoredResult
Events = AsyncGenerator[Event | StoredEvent]


def router(
    service: Service,
    Body: type[GenerateRequest],  # noqa: N803 - a class, created for this service
    files: Files | None,
) -> APIRouter:
    """Return the routes of one service with request bodies of type `Body`; without files there are no URLs."""
    routes = APIRouter()
    errors = DIALECT.responses
    described = sse.described(*get_args(Event), *get_args(StoredEvent))

    def urls(body: GenerateRequest, http: Request) -> Urls | None:
        return urls_of(files, http) if body.response_format == "url" else None

    @routes.post("/generate", response_model=AnyResult, responses=errors(413, 415, 422, 429, 500, 503, 504))
    async def generate(body: Body, http: Request) -> Response:  # type: ignore[valid-type]  # a class made at run time
        """Generate all images and return them together."""
        keep = urls(body, http)
        result = await service.generate(body)
        answer = await stored_result(result, keep) if keep else result
        return StreamingResponse(in_pieces(answer), media_type="application/json")

    async def accepted(body: Body, http: Request) -> AsyncIterator[Events]:  # type: ignore[valid-type]  # as above
        # A dependency, because the route is a generator: once it runs, the status is already 200.
        keep = urls(body, http)
        async with service.stream(body) as events:
            yield sse.ended(stored_events(events, keep) if keep else events, _error)

    @routes.post("/stream", response_class=EventSourceResponse, responses=errors(413, 415, 422, 429, 503) | described)
    async def stream(events: Annotated[Events, Depends(accepted)]) -> AsyncIterator[ServerSentEvent]:
        """Generate all images and report progress as server-sent events."""
        async for event in events:
            yield ServerSentEvent(data=event, event=event.type)

    @routes.delete("/generations/{id}", responses=errors(404, 503))
    async def cancel(id: str) -> Cancelled:
        """Cancel all unfinished images of a running request. Repeatable. The id is in the stream's start event."""
        return await service.cancel(id)

    @routes.delete("/generations/{id}/images/{index}", responses=errors(404, 422, 503))
    async def cancel_image(id: str, index: int) -> Cancelled:
        """Cancel one image of a running request; the others go on. Repeatable."""
        return await service.cancel(id, index)

    @routes.get("/status")
    async def status() -> ServiceStatus:
        """Return how busy the service is; at most a second old."""
        return service.status()

    return routes


def _error(problem: Problem) -> ErrorEvent:
    return ErrorEvent(error=problem)


def health_router(service: Service) -> APIRouter:
    """Return the only route that never needs a key."""
    routes = APIRouter()

    @routes.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        """Return whether images can be generated: 200 with a replica that is ready, 503 while starting or stopping."""
        state = service.health()
        return JSONResponse(state.model_dump(), 200 if state.status == "ready" else 503)

    return routes
