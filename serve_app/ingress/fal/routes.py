"""The routes of fal-ai/fast-sdxl."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from serve_app.errors import NotFound
from serve_app.ingress import sse
from serve_app.ingress.fal.answers import frames, output
from serve_app.ingress.fal.errors import DIALECT, body_of
from serve_app.ingress.fal.requests import NAMES, input_class, own_request
from serve_app.ingress.fal.schemas import (
    FalErrorBody,
    FastSdxlInput,
    FastSdxlOutput,
    ImageToImageInput,
    InpaintingInput,
    PreviewFrame,
)
from serve_app.ingress.file_urls import Urls, urls_of
from serve_app.ingress.files import Files
from serve_app.ingress.large_json import in_pieces
from serve_app.ingress.offers import Bodies, Offers
from serve_app.ingress.requests import renamed

_ENDPOINTS: tuple[tuple[str, type[FastSdxlInput], str], ...] = (
    ("", FastSdxlInput, "Generate all images"),
    ("/image-to-image", ImageToImageInput, "Go on from a picture"),
    ("/inpainting", InpaintingInput, "Generate a part of a picture anew"),
)


def router(offers: Offers, files: Files | None) -> APIRouter:
    """Return the routes of a service with these models; without files images are data URIs."""
    routes = APIRouter(prefix="/fal-ai/fast-sdxl", dependencies=[Depends(_not_queued)])
    for path, kind, does in _ENDPOINTS:
        _add(routes, path, does, _Endpoint(_bodies(kind, offers), files))

    @routes.api_route("/requests/{rest:path}", methods=["GET", "POST", "PUT"], include_in_schema=False)
    async def queued(rest: str) -> None:
        raise _no_queue()

    return routes


def _bodies(kind: type[FastSdxlInput], offers: Offers) -> Bodies[FastSdxlInput]:
    choose = partial(offers.chosen, param="model_name")
    return Bodies(offers, partial(input_class, kind), choose, lambda body: body.get("model_name"))


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """What answers the bodies of one endpoint."""

    bodies: Bodies[FastSdxlInput]
    files: Files | None

    async def run(self, body: FastSdxlInput, http: Request) -> FastSdxlOutput:
        offer = self.bodies.offer_of(body)
        with renamed(NAMES):
            result = await offer.service.generate(own_request(body, offer))
        seed, prompt = result.images[0].seed, result.parameters.prompt
        return await output(result.images, seed, prompt, result.timings, result.warnings, self._urls(body, http))

    async def stream(self, body: FastSdxlInput, http: Request) -> AsyncIterator[AsyncGenerator[BaseModel]]:
        offer = self.bodies.offer_of(body)
        with renamed(NAMES):
            async with offer.service.stream(own_request(body, offer)) as events:
                yield sse.ended(frames(events, self._urls(body, http)), body_of)

    def _urls(self, body: FastSdxlInput, http: Request) -> Urls | None:
        return None if body.sync_mode or self.files is None else urls_of(self.files, http)


def _add(routes: APIRouter, path: str, does: str, endpoint: _Endpoint) -> None:
    """Add one of fal's endpoints: what `run` calls, and what `stream` calls."""
    Body = endpoint.bodies.annotation  # noqa: N806 - a class, created for this service
    errors = DIALECT.responses
    described = sse.described(PreviewFrame, FastSdxlOutput, FalErrorBody)

    async def run(body: Body, http: Request) -> Response:  # type: ignore[valid-type]  # a class made at run time
        answer = await endpoint.run(body, http)
        return StreamingResponse(in_pieces(answer), media_type="application/json")

    async def accepted(body: Body, http: Request) -> AsyncIterator[AsyncGenerator[BaseModel]]:  # type: ignore[valid-type]  # as above
        async for told in endpoint.stream(body, http):
            yield told

    async def stream(told: Annotated[AsyncGenerator[BaseModel], Depends(accepted)]) -> AsyncIterator[ServerSentEvent]:
        async for frame in told:
            yield ServerSentEvent(data=frame)

    routes.post(
        path,
        response_model=FastSdxlOutput,
        responses=errors(404, 413, 415, 422, 429, 503, 504),
        description=f"{does}: the `run` of fal's clients.",
    )(run)
    routes.post(
        f"{path}/stream",
        response_class=EventSourceResponse,
        responses=described | errors(404, 413, 415, 422, 429, 503),
        description=f"{does}, with previews: the `stream` of fal's clients.",
    )(stream)


def _not_queued(http: Request) -> None:
    """Refuse what fal's clients send to a queue: requests to a `queue.` host, or with a webhook."""
    if (http.url.hostname or "").startswith("queue.") or "fal_webhook" in http.query_params:
        raise _no_queue()


def _no_queue() -> NotFound:
    return NotFound("this service has no queue, so no submit, subscribe, status or result; use run or stream")
