"""The routes of the OpenAI Images API."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from serve_app.config import AppArgs
from serve_app.errors import ModelNotFound
from serve_app.ingress import sse
from serve_app.ingress.file_urls import urls_of
from serve_app.ingress.files import Files
from serve_app.ingress.large_json import in_pieces
from serve_app.ingress.openai.answers import DONE, error_frame, frames, images_response
from serve_app.ingress.openai.errors import DIALECT
from serve_app.ingress.openai.names import stands_for
from serve_app.ingress.openai.requests import images_request, own_request, wants_urls
from serve_app.ingress.openai.schemas import (
    CompletedEvent,
    ErrorEvent,
    FailedEvent,
    ImagesRequest,
    ImagesResponse,
    ModelCard,
    ModelList,
    PartialImageEvent,
    WarningsEvent,
)
from serve_app.ingress.service import Service
from serve_app.ingress.stored import stored_events
from serve_app.schemas import GenerateRequest


def router(service: Service, request: type[GenerateRequest], args: AppArgs, files: Files | None) -> APIRouter:
    """Return the routes of one service with requests of type `request`; without files there are no URLs."""
    routes = APIRouter(prefix="/v1")
    errors = DIALECT.responses
    Body = images_request(request, args.model)  # noqa: N806 - a class, created for this service
    described = sse.described(PartialImageEvent, CompletedEvent, FailedEvent, WarningsEvent, ErrorEvent, last=DONE)

    async def generated(body: Body, http: Request) -> AsyncIterator[Response]:  # type: ignore[valid-type]  # a class made at run time
        # A dependency, because a stream's request stays open while its answer is sent.
        images: ImagesRequest = body
        asked = own_request(images, request, args.model)
        if images.model is not None:
            known(images.model)
        urls = urls_of(files, http) if wants_urls(images, can_be=files is not None) else None
        if images.stream:
            async with service.stream(asked) as events:
                told = frames(stored_events(events, urls) if urls else events, asked)
                yield sse.streamed(sse.ended(told, error_frame))
            return
        answer = await images_response(await service.generate(asked), urls)
        yield StreamingResponse(in_pieces(answer), media_type="application/json")

    def known(model: str) -> ModelCard:
        """Return the served model under one of its names. Raises ModelNotFound, NotReady."""
        name = service.model().name
        if not stands_for(model, (name, args.model.path)):
            raise ModelNotFound(f'the model "{model}" is not served here; this service has "{name}"', "model")
        return ModelCard(id=model)

    @routes.post(
        "/images/generations",
        response_model=ImagesResponse,
        responses=described | errors(400, 404, 413, 415, 429, 503, 504),
    )
    async def generate(answer: Annotated[Response, Depends(generated)]) -> Response:
        """Generate n images: the `images.generate` of OpenAI's SDKs."""
        return answer

    @routes.get("/models", responses=errors(503))
    async def models() -> ModelList:
        """List the served model."""
        return ModelList(data=[ModelCard(id=service.model().name)])

    @routes.get("/models/{model:path}", responses=errors(404, 503))
    async def retrieve(model: str) -> ModelCard:
        """Describe the served model, by its name or an alias."""
        return known(model)

    return routes
