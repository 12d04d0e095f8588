"""Translates the service's answers and events to those of the OpenAI Images API."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi.sse import format_sse_event

from serve_app import schemas as own
from serve_app.errors import GenerationFailed
from serve_app.ingress.file_urls import Urls
from serve_app.ingress.openai.errors import body_of
from serve_app.ingress.openai.events import ErrorEvent, ImageEvent, Kinds
from serve_app.ingress.openai.schemas import ImageItem, ImagesResponse
from serve_app.ingress.stored import StoredEvent, StoredImageEvent
from serve_app.schemas import BatchResult, Event, GenerateRequest, Image, Picture, Problem, model_warning

DONE = "[DONE]"


async def images_response(result: BatchResult, urls: Urls | None) -> ImagesResponse:
    """Return the answer to a request without `stream`: with URLs, or without `urls` with the images."""
    parameters = result.parameters
    told = [image for image in result.images if isinstance(image, Picture) or image.error.type != own.NOT_KEPT]
    data = await asyncio.gather(*[_item(image, urls) for image in told])
    return ImagesResponse(
        created=result.created,
        output_format=parameters.output_format,
        size=f"{parameters.width}x{parameters.height}",
        warnings=[*result.warnings, *urls.warnings] if urls else result.warnings,
        data=data,
    )


async def _item(image: Image, urls: Urls | None) -> ImageItem:
    if not isinstance(image, Picture):
        return ImageItem(image_index=image.index, seed=image.seed, failure=image.error)
    url = await urls.of(image) if urls else None
    at = {"b64_json": image.b64_json} if url is None else {"url": url}
    return ImageItem(**at, image_index=image.index, seed=image.seed, variations=image.variations, model=image.model)


async def frames(
    events: AsyncIterator[Event | StoredEvent], request: GenerateRequest, kinds: Kinds
) -> AsyncGenerator[bytes]:
    """Yield a stream's server-sent events as bytes."""
    start: own.StartEvent | None = None
    async for event in events:
        if isinstance(event, own.StartEvent):
            start = event
        elif (told := _told(event, request, kinds, start)) is not None:
            yield _framed(told)
            if isinstance(told, ErrorEvent):
                return
    yield format_sse_event(data_str=DONE)


def error_frame(problem: Problem) -> bytes:
    """Return the last event of a stream that failed."""
    return _framed(ErrorEvent(error=body_of(GenerationFailed.status, problem).error))


def _framed(told: ImageEvent) -> bytes:
    return format_sse_event(data_str=told.model_dump_json(), event=told.type)


def _told(
    event: Event | StoredEvent, request: GenerateRequest, kinds: Kinds, start: own.StartEvent | None
) -> ImageEvent | None:
    """Return OpenAI's event for one of ours, or None if OpenAI has none. Events of images come after the start."""
    match event:
        case own.PreviewEvent() | own.PausedEvent() if start and event.step in (steps := request.preview_steps or []):
            return kinds.partial(
                b64_json=event.b64_json,
                output_format="jpeg",
                image_index=event.index,
                seed=event.seed,
                step=event.step,
                partial_image_index=steps.index(event.step),
                created_at=int(time.time()),
                size=_size(start),
            )
        case own.ImageEvent() | StoredImageEvent() if start:
            return kinds.completed(
                **({"url": event.url} if isinstance(event, StoredImageEvent) else {"b64_json": event.b64_json}),
                output_format=request.output_format,
                image_index=event.index,
                seed=event.seed,
                variations=event.variations,
                step=request.num_inference_steps,
                model=event.model,
                warnings=[*start.warnings, *([model_warning(event.index, event.model)] if event.model else [])],
                created_at=int(time.time()),
                size=_size(start),
            )
        case own.FailedEvent() | own.CancelledEvent() if event.error.type != own.NOT_KEPT:
            return kinds.failed(image_index=event.index, seed=event.seed, failure=event.error)
        case own.CompletedEvent() if event.warnings:
            return kinds.warnings(warnings=event.warnings)
        case own.ErrorEvent():
            return ErrorEvent(error=body_of(GenerationFailed.status, event.error).error)
        case _:
            return None


def _size(start: own.StartEvent) -> str:
    return f"{start.parameters.width}x{start.parameters.height}"
