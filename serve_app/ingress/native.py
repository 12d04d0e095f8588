"""The service's own API: /generate, /stream, /generations, /health, /status."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from serve_app.ingress import sse
from serve_app.ingress.file_urls import Urls, urls_of
from serve_app.ingress.files import Files
from serve_app.ingress.forms import KIND, FormRoute, validated
from serve_app.ingress.large_json import in_pieces
from serve_app.ingress.offers import Bodies, Offers
from serve_app.ingress.problems import Dialect
from serve_app.ingress.service import Service
from serve_app.ingress.stored import StoredEvent, StoredResult, stored_event, stored_result
from serve_app.readings import Entry
from serve_app.recipe import NO_CHANGES, Changes
from serve_app.schemas import (
    BatchResult,
    Cancelled,
    EmbeddingFile,
    ErrorBody,
    ErrorEvent,
    Event,
    GenerateRequest,
    Health,
    LoraFile,
    Problem,
    ResponseFormat,
    Resumed,
    ResumeRequest,
    ServedModel,
    ServedScheduler,
    ServiceStatus,
    UnfinishedResult,
)

DIALECT = Dialect(prefix="", model=ErrorBody, body=lambda _, problem: ErrorBody(error=problem))

AnyResult = BatchResult | StoredResult

_PICTURES = {"init_image", "mask_image"}
_FILE = {"type": "string", "format": "binary"}
_AS_A_FORM: dict[str, Any] = {
    "requestBody": {
        "content": {
            KIND: {
                "schema": {
                    "allOf": [
                        {"$ref": f"#/components/schemas/{GenerateRequest.__name__}"},
                        {"properties": dict.fromkeys(sorted(_PICTURES), _FILE)},
                    ]
                }
            }
        }
    }
}
_EVENTS = sse.described(*get_args(Event), *get_args(StoredEvent))

Frames = AsyncGenerator[ServerSentEvent]
OneModel = Annotated[str | None, Query(description="Whose, by its name. Left out: the default model's.")]
LastEventId = Annotated[
    int, Header(alias="Last-Event-ID", ge=0, description="Id of the last event that the client has. 0: all of them.")
]


def router(service: Service, offers: Offers, files: Files | None, most_bytes: int) -> APIRouter:
    """Return the routes of a service with these models; without files there are no URLs."""
    routes, forms = APIRouter(), APIRouter(route_class=FormRoute, include_in_schema=False)
    errors = DIALECT.responses
    bodies = Bodies(offers, lambda offer: offer.request, offers.chosen, lambda body: body.get("model"))

    async def form(http: Request) -> GenerateRequest:
        return await validated(http, bodies, _PICTURES, most_bytes)

    _add_generating(forms, Annotated[bodies.default, Depends(form)], bodies, files)
    routes.include_router(forms)
    _add_generating(routes, bodies.annotation, bodies, files)

    async def resumed(id: str, http: Request, last_event_id: LastEventId = 0) -> AsyncIterator[Frames]:
        async with service.reopen(id, last_event_id) as reading:
            yield sse.ended(_frames(reading.entries, _urls(files, reading.response_format, http)), _error)

    @routes.get(
        "/generations/{id}/events", response_class=EventSourceResponse, responses=errors(404, 422, 503) | _EVENTS
    )
    async def events(frames: Annotated[Frames, Depends(resumed)]) -> AsyncIterator[ServerSentEvent]:
        """Go on with a stream that broke: all events after Last-Event-ID but those that later ones have superseded."""
        async for frame in frames:
            yield frame

    @routes.get(
        "/generations/{id}",
        response_model=AnyResult,
        responses={202: {"model": UnfinishedResult}, **errors(404, 503, 504)},
    )
    async def generation(id: str, http: Request) -> Response:
        """Return the answer of a generation until streams.keep_s after its end; 202 while images are still to come."""
        found = await service.find(id)
        if isinstance(found.answer, UnfinishedResult):
            return JSONResponse(found.answer.model_dump(), 202)
        keep = _urls(files, found.response_format, http)
        answer = await stored_result(found.answer, keep) if keep else found.answer
        return StreamingResponse(in_pieces(answer), media_type="application/json")

    @routes.delete("/generations/{id}", responses=errors(404, 503))
    async def cancel(id: str) -> Cancelled:
        """Cancel all unfinished images of a running request. Repeatable. The id is in the stream's start event."""
        return await service.cancel(id)

    @routes.delete("/generations/{id}/images/{index}", responses=errors(404, 422, 503))
    async def cancel_image(id: str, index: int) -> Cancelled:
        """Cancel one image of a running request; the others go on. Repeatable."""
        return await service.cancel(id, index)

    @routes.post("/generations/{id}/resume", responses=errors(404, 409, 413, 415, 422, 503, 504))
    async def resume(id: str, body: ResumeRequest) -> Resumed:
        """Let images of a running request go on that are paused after a sketch. 409 if none of them is."""
        return await service.resume_images(id, body.images, Changes.of(body))

    @routes.post("/generations/{id}/images/{index}/resume", responses=errors(404, 409, 413, 415, 422, 503, 504))
    async def resume_image(id: str, index: int, body: Changes | None = None) -> Resumed:
        """Let one image go on that is paused after a sketch. 409 if it is not."""
        return await service.resume_images(id, [index], body or NO_CHANGES)

    @routes.get("/models")
    async def models() -> list[ServedModel]:
        """List the models that requests may name as `model`, the default first, each with its bounds and defaults."""
        return [ServedModel(name=offer.name_if_known, request=offer.request.model_json_schema()) for offer in offers]

    @routes.get("/schedulers", responses=errors(422, 503))
    async def schedulers(model: OneModel = None) -> list[ServedScheduler]:
        """List the schedulers that can sample the served model, each with the sigma_schedules that it can follow."""
        return offers.chosen(model).service.schedulers()

    @routes.get("/loras", responses=errors(422, 503))
    async def loras(model: OneModel = None) -> list[LoraFile]:
        """List the adapters that requests may name as `loras`. New files count at once."""
        return await offers.chosen(model).service.loras()

    @routes.get("/embeddings", responses=errors(422, 503))
    async def embeddings(model: OneModel = None) -> list[EmbeddingFile]:
        """List the embeddings (textual inversion) that prompts may name as `embedding:name`."""
        return await offers.chosen(model).service.embeddings()

    @routes.get("/status")
    async def status() -> ServiceStatus:
        """Return how busy the service is; at most a second old."""
        return service.status()

    return routes


def _add_generating(
    routes: APIRouter,
    Sent: Any,  # noqa: N803 - a type
    bodies: Bodies[GenerateRequest],
    files: Files | None,
) -> None:
    """Add the routes that generate; `Sent` is the annotation of what they are sent."""
    errors = DIALECT.responses

    @routes.post(
        "/generate",
        response_model=AnyResult,
        responses=errors(413, 415, 422, 429, 503, 504),
        openapi_extra=_AS_A_FORM,
    )
    async def generate(body: Sent, http: Request) -> Response:
        """Generate all images and return them together."""
        keep = _urls(files, body.response_format, http)
        result = await bodies.offer_of(body).service.generate(body)
        answer = await stored_result(result, keep) if keep else result
        return StreamingResponse(in_pieces(answer), media_type="application/json")

    # A dependency, because the route is a generator: once it runs, the status is already 200.
    async def opened(body: Sent, http: Request) -> AsyncIterator[Frames]:
        keep = _urls(files, body.response_format, http)
        async with bodies.offer_of(body).service.open(body) as reading:
            yield sse.ended(_frames(reading.entries, keep), _error)

    @routes.post(
        "/stream",
        response_class=EventSourceResponse,
        responses=errors(413, 415, 422, 429, 503) | _EVENTS,
        openapi_extra=_AS_A_FORM,
    )
    async def stream(frames: Annotated[Frames, Depends(opened)]) -> AsyncIterator[ServerSentEvent]:
        """Generate all images and report progress as server-sent events."""
        async for frame in frames:
            yield frame


def _urls(files: Files | None, form: ResponseFormat, http: Request) -> Urls | None:
    return urls_of(files, http) if form == "url" else None


async def _frames(entries: AsyncGenerator[Entry], urls: Urls | None) -> Frames:
    """Yield the frames of a stream, with URLs instead of pictures if wanted."""
    async for number, event in entries:
        told = await stored_event(event, urls) if urls else event
        yield ServerSentEvent(data=told, event=told.type, id=None if number is None else str(number))


def _error(problem: Problem) -> ServerSentEvent:
    return ServerSentEvent(data=ErrorEvent(error=problem), event="error")


def health_router(service: Service) -> APIRouter:
    """Return the only route that never needs a key."""
    routes = APIRouter()

    @routes.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> JSONResponse:
        """Return whether to send requests here: 200 when ready, asleep or waking, 503 while starting or stopping."""
        state = service.health()
        # Asleep too: a probe that took the ingress out would leave nobody to wake it.
        return JSONResponse(state.model_dump(), 503 if state.status in ("starting", "stopping") else 200)

    return routes
