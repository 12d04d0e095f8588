"""The routes of the OpenAI Images API."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from serve_app.errors import ModelNotFound
from serve_app.ingress import sse
from serve_app.ingress.file_urls import urls_of
from serve_app.ingress.files import Files
from serve_app.ingress.forms import validated
from serve_app.ingress.large_json import in_pieces
from serve_app.ingress.offers import Bodies, Offer, Offers
from serve_app.ingress.openai.answers import DONE, error_frame, frames, images_response
from serve_app.ingress.openai.edits import (
    NAMES,
    EditForm,
    VariationForm,
    described,
    edit_form,
    own_request_of,
    variation_form,
)
from serve_app.ingress.openai.errors import DIALECT
from serve_app.ingress.openai.events import EDIT, GENERATION, Kinds
from serve_app.ingress.openai.names import offer_called
from serve_app.ingress.openai.requests import images_request, own_request, wants_urls
from serve_app.ingress.openai.schemas import ImagesRequest, ImagesResponse, ModelCard, ModelList
from serve_app.ingress.requests import renamed
from serve_app.ingress.stored import stored_events
from serve_app.schemas import GenerateRequest

Body = TypeVar("Body", bound=ImagesRequest)
Changed = TypeVar("Changed", EditForm, VariationForm)


def router(offers: Offers, files: Files | None, most_bytes: int) -> APIRouter:
    """Return the routes of a service with these models; without files there are no URLs."""
    routes = APIRouter(prefix="/v1")
    errors = DIALECT.responses
    refusals = errors(400, 404, 413, 415, 429, 503, 504)

    def known(model: str) -> Offer:
        """Return a served model under one of its names. Raises ModelNotFound, NotReady."""
        offer = offer_called(model, offers)
        if offer is None:
            raise ModelNotFound(f'the model "{model}" is not served here; this service has {offers.names}', "model")
        return offer

    def chosen(model: str | None) -> Offer:
        name = (model or "").strip()
        return known(name) if name else offers.default

    def bodies(make: Callable[[Offer], type[Body]]) -> Bodies[Body]:
        return Bodies(offers, make, chosen, lambda body: body.get("model"))

    images = bodies(images_request)
    edits, variations = bodies(edit_form), bodies(variation_form)
    Images = images.annotation  # noqa: N806 - a class, created for this service

    # Dependencies, because a stream's request stays open while its answer is sent.
    async def generated(body: Images, http: Request) -> AsyncIterator[Response]:  # type: ignore[valid-type]  # made at run time
        offer = images.offer_of(body)
        async with answered(body, offer, own_request(body, offer), GENERATION, http) as answer:
            yield answer

    async def edited(http: Request) -> AsyncIterator[Response]:
        async with changed(edits, http) as answer:
            yield answer

    async def varied(http: Request) -> AsyncIterator[Response]:
        async with changed(variations, http) as answer:
            yield answer

    @asynccontextmanager
    async def changed(forms: Bodies[Changed], http: Request) -> AsyncIterator[Response]:
        form = await validated(http, forms, {*NAMES.values()}, most_bytes)
        offer = forms.offer_of(form)
        with renamed(NAMES):
            asked = await own_request_of(form, offer)
            async with answered(form, offer, asked, EDIT, http) as answer:
                yield answer

    @asynccontextmanager
    async def answered(
        images: ImagesRequest, offer: Offer, asked: GenerateRequest, kinds: Kinds, http: Request
    ) -> AsyncIterator[Response]:
        urls = urls_of(files, http) if wants_urls(images, can_be=files is not None) else None
        if images.stream:
            async with offer.service.stream(asked) as events:
                told = frames(stored_events(events, urls) if urls else events, asked, kinds)
                yield sse.streamed(sse.ended(told, error_frame))
            return
        answer = await images_response(await offer.service.generate(asked), urls)
        yield StreamingResponse(in_pieces(answer), media_type="application/json")

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
        openapi_extra=described(edits.default),
    )
    async def edit(answer: Annotated[Response, Depends(edited)]) -> Response:
        """Go on from a picture, or generate a part of it anew: the `images.edit` of OpenAI's SDKs."""
        return answer

    @routes.post(
        "/images/variations",
        response_model=ImagesResponse,
        responses=sse.described(*EDIT.all, last=DONE) | refusals,
        openapi_extra=described(variations.default),
    )
    async def vary(answer: Annotated[Response, Depends(varied)]) -> Response:
        """Go on from a picture: the `images.create_variation` of OpenAI's SDKs."""
        return answer

    @routes.get("/models", responses=errors(503))
    async def models() -> ModelList:
        """List the served models, the default first."""
        return ModelList(data=[ModelCard(id=offer.name) for offer in offers])

    @routes.get("/models/{model:path}", responses=errors(404, 503))
    async def retrieve(model: str) -> ModelCard:
        """Describe a served model, by its name or an alias."""
        known(model)
        return ModelCard(id=model)

    return routes
