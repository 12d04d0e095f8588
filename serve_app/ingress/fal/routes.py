"""The routes of fal-ai/fast-sdxl."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from serve_app.config import AppArgs
from serve_app.errors import NotFound
from serve_app.ingress import sse
from serve_app.ingress.fal.answers import frames, output
from serve_app.ingress.fal.errors import DIALECT, body_of
from serve_app.ingress.fal.requests import fast_sdxl_input, own_request
from serve_app.ingress.fal.schemas import FalErrorBody, FastSdxlInput, FastSdxlOutput, PreviewFrame
from serve_app.ingress.file_urls import Urls, urls_of
from serve_app.ingress.files import Files
from serve_app.ingress.large_json import in_pieces
from serve_app.ingress.service import Service
from serve_app.schemas import GenerateRequest


def router(service: Service, request: type[GenerateRequest], args: AppArgs, files: Files | None) -> APIRouter:
    """Return the routes of one service with requests of type `request`; without files images are data URIs."""
    routes = APIRouter(prefix="/fal-ai/fast-sdxl", dependencies=[Depends(_not_queued)])
    errors = DIALECT.responses
    Body = fast_sdxl_input(request, args.model)  # noqa: N806 - a class, created for this service

    def urls(body: FastSdxlInput, http: Request) -> Urls | None:
        return None if body.sync_mode or files is None else urls_of(files, http)

    @routes.post("", response_model=FastSdxlOutput, responses=errors(404, 413, 415, 422, 429, 503, 504))
    async def run(body: Body, http: Request) -> Response:  # type: ignore[valid-type]  # a class made at run time
        """Generate all images: the `run` of fal's clients."""
        result = await service.generate(own_request(body, request, args.model))
        seed, prompt = result.images[0].seed, result.parameters.prompt
        answer = await output(result.images, seed, prompt, result.timings, result.warnings, urls(body, http))
        return StreamingResponse(in_pieces(answer), media_type="application/json")

    async def accepted(body: Body, http: Request) -> AsyncIterator[AsyncGenerator[BaseModel]]:  # type: ignore[valid-type]  # as above
        async with service.stream(own_request(body, request, args.model)) as events:
            yield sse.ended(frames(events, urls(body, http)), body_of)

    described = sse.described(PreviewFrame, FastSdxlOutput, FalErrorBody)

    @routes.post(
        "/stream", response_class=EventSourceResponse, responses=described | errors(404, 413, 415, 422, 429, 503)
    )
    async def stream(told: Annotated[AsyncGenerator[BaseModel], Depends(accepted)]) -> AsyncIterator[ServerSentEvent]:
        """Generate all images with previews: the `stream` of fal's clients."""
        async for frame in told:
            yield ServerSentEvent(data=frame)

    @routes.api_route("/requests/{rest:path}", methods=["GET", "POST", "PUT"], include_in_schema=False)
    async def queued(rest: str) -> None:
        raise _no_queue()

    return routes


def _not_queued(http: Request) -> None:
    """Refuse what fal's clients send to a queue: requests to a `queue.` host, or with a webhook."""
    if (http.url.hostname or "").startswith("queue.") or "fal_webhook" in http.query_params:
        raise _no_queue()


def _no_queue() -> NotFound:
    return NotFound("this service has no queue, so no submit, subscribe, status or result; use run or stream")
