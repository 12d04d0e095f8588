"""The routes of the OpenAI Images API."""

import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from serve_app.config import AppArgs
from serve_app.errors import InvalidRequest, ModelNotFound
from serve_app.ingress import sse
from serve_app.ingress.files import Files, UrlOf
from serve_app.ingress.openai.answers import DONE, frames, images_response
from serve_app.ingress.openai.errors import DIALECT
from serve_app.ingress.openai.requests import images_request, own_request
from serve_app.ingress.openai.schemas import (
    CompletedEvent,
    ErrorEvent,
    FailedEvent,
    ImagesRequest,
    ImagesResponse,
    ModelCard,
    ModelList,
    PartialImageEvent,
)
from serve_app.ingress.pieces import in_pieces
from serve_app.ingress.service import Service
from serve_app.schemas import GenerateRequest

_ALIASES = re.compile(r"(gpt-image|dall-e)-.+")
"""Names of OpenAI's models, so that programs written for them need no change."""


def router(service: Service, request: type[GenerateRequest], args: AppArgs, files: Files | None) -> APIRouter:
    """Return the routes of one service, whose own requests are `request`; without files there are no URLs."""
    routes = APIRouter(prefix="/v1")
    errors = DIALECT.responses
    Body = images_request(request, args.model)  # noqa: N806 - a class, made for this service
    events = sse.described(PartialImageEvent, CompletedEvent, FailedEvent, ErrorEvent, last=DONE)

    async def painted(body: Body, http: Request) -> AsyncIterator[Response]:  # type: ignore[valid-type]  # a class made at run time
        # A dependency, because a stream's request is open for as long as its answer is being sent.
        images: ImagesRequest = body
        asked = own_request(images, request, args.model)
        if images.model is not None and not _ALIASES.fullmatch(images.model):
            served(images.model)
        if images.stream:
            async with service.stream(asked) as stream:
                yield sse.streamed(frames(stream, asked))
            return
        url_of = url_maker(http) if images.response_format == "url" else None
        answer = await images_response(await service.generate(asked), url_of)
        yield StreamingResponse(in_pieces(answer), media_type="application/json")

    def url_maker(http: Request) -> UrlOf:
        if files is None:
            raise InvalidRequest("response_format: url needs the service's option files.path; ask for b64_json", "response_format")
        return partial(files.url_of, request=http)

    def served(model: str) -> ModelCard:
        """Return the served model if that is its name. Raises ModelNotFound."""
        name = service.model().name
        if model != name:
            raise ModelNotFound(f"the model {model} is not served here; {name} is", "model")
        return ModelCard(id=name)

    @routes.post("/images/generations", response_model=ImagesResponse, responses=events | errors(400, 404, 413, 429, 500, 503, 504))
    async def generate(answer: Annotated[Response, Depends(painted)]) -> Response:
        """Paint n images, as OpenAI's SDKs ask for them."""
        return answer

    @routes.get("/models", responses=errors(503))
    async def models() -> ModelList:
        """List the one model that is served."""
        return ModelList(data=[served(service.model().name)])

    @routes.get("/models/{model:path}", responses=errors(404, 503))
    async def retrieve(model: str) -> ModelCard:
        """Describe the served model, by its name or one that stands for it."""
        return ModelCard(id=model) if _ALIASES.fullmatch(model) else served(model)

    return routes
