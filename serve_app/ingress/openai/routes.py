"""The routes of the OpenAI Images API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from serve_app.config import AppArgs
from serve_app.errors import ModelNotFound
from serve_app.ingress import sse
from serve_app.ingress.file_urls import urls_of
from serve_app.ingress.files import Files
from serve_app.ingress.forms import validated
from serve_app.ingress.large_json import in_pieces
from serve_app.ingress.openai.answers import DONE, error_frame, frames, images_response
from serve_app.ingress.openai.edits import (
    NAMES,
    EditForm,
    Hole,
    VariationForm,
    described,
    edit_form,
    own_request_of,
    variation_form,
)
from serve_app.ingress.openai.errors import DIALECT
from serve_app.ingress.openai.events import EDIT, GENERATION, Kinds
from serve_app.ingress.openai.names import stands_for
from serve_app.ingress.openai.requests import images_request, own_request, wants_urls
from serve_app.ingress.openai.schemas import ImagesRequest, ImagesResponse, ModelCard, ModelList
from serve_app.ingress.requests import renamed
from serve_app.ingress.service import Service
from serve_app.ingress.stored import stored_events
from serve_app.schemas import GenerateRequest


def router(
    service: Service, request: type[GenerateRequest], args: AppArgs, files: Files | None, hole: Hole
) -> APIRouter:
    """Return the routes of one service with requests of type `request`; without files there are no URLs."""
    routes = APIRouter(prefix="/v1")
    errors = DIALECT.responses
    refusals = errors(400, 404, 413, 415, 429, 503, 504)
    Body = images_request(request, args.model)  # noqa: N806 - a class, created for this service
    Edit, Variation = edit_form(request, args.model), variation_form(request, args.model)  # noqa: N806 - as above

    # Dependencies, because a stream's request stays open while its answer is sent.
    async def generated(body: Body, http: Request) -> AsyncIterator[Response]:  # type: ignore[valid-type]  # a class made at run time
        images: ImagesRequest = body
        async with answered(images, own_request(images, request, args.model), GENERATION, http) as answer:
            yield answer

    async def edited(http: Request) -> AsyncIterator[Response]:
        async with changed(Edit, http) as answer:
            yield answer

    async def varied(http: Request) -> AsyncIterator[Response]:
        async with changed(Variation, http) as answer:
            yield answer

    @asynccontextmanager
    async def changed(kind: type[EditForm] | type[VariationForm], http: Request) -> AsyncIterator[Response]:
        form = await validated(http, kind, {*NAMES.values()}, args.limits.max_body_bytes)
        with renamed(NAMES):
            asked = await own_request_of(form, request, args.model, hole)
            async with answered(form, asked, EDIT, http) as answer:
                yield answer

    @asynccontextmanager
    async def answered(
        images: ImagesRequest, asked: GenerateRequest, kinds: Kinds, http: Request
    ) -> AsyncIterator[Response]:
        if images.model is not None:
            known(images.model)
        urls = urls_of(files, http) if wants_urls(images, can_be=files is not None) else None
        if images.stream:
            async with service.stream(asked) as events:
                told = frames(stored_events(events, urls) if urls else events, asked, kinds)
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
        responses=sse.described(*GENERATION.all, last=DONE) | refusals,
    )
    async def generate(answer: Annotated[Response, Depends(generated)]) -> Response:
        """Generate n images: the `images.generate` of OpenAI's SDKs."""
        return answer

    @routes.post(
        "/images/edits",
        response_model=ImagesResponse,
        responses=sse.described(*EDIT.all, last=DONE) | refusals,
        openapi_extra=described(Edit),
    )
    async def edit(answer: Annotated[Response, Depends(edited)]) -> Response:
        """Go on from a picture, or generate a part of it anew: the `images.edit` of OpenAI's SDKs."""
        return answer

    @routes.post(
        "/images/variations",
        response_model=ImagesResponse,
        responses=sse.described(*EDIT.all, last=DONE) | refusals,
        openapi_extra=described(Variation),
    )
    async def vary(answer: Annotated[Response, Depends(varied)]) -> Response:
        """Go on from a picture: the `images.create_variation` of OpenAI's SDKs."""
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
