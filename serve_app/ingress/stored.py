"""Answers and events with the URL of a stored image instead of the image."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Literal, TypeVar

from serve_app.ingress.file_urls import Urls
from serve_app.schemas import (
    Answer,
    BatchResult,
    CompletedEvent,
    Event,
    GpuSeconds,
    Grid,
    GridEvent,
    Image,
    ImageEvent,
    NoPicture,
    OtherModel,
    OwnParameters,
    Picture,
    Result,
    Variations,
)


class StoredPicture(Answer):
    """An image that was generated, at a URL."""

    index: int
    seed: int
    status: Literal["succeeded"] = "succeeded"
    width: int
    height: int
    media_type: str
    url: str
    model: OtherModel = None
    gpu_seconds: GpuSeconds = 0
    variations: Variations = ()
    parameters: OwnParameters = None


class StoredGrid(Answer):
    """The contact sheet, at a URL."""

    width: int
    height: int
    media_type: str
    url: str


class StoredResult(Result):
    """The answer of `POST /generate` with `response_format: url`. What could not be stored is in it as it is."""

    images: list[StoredPicture | Picture | NoPicture]
    grid: StoredGrid | Grid | None


class StoredImageEvent(StoredPicture):
    type: Literal["image"] = "image"


class StoredGridEvent(StoredGrid):
    type: Literal["grid"] = "grid"


StoredEvent = StoredImageEvent | StoredGridEvent

Sent = TypeVar("Sent", bound=Picture | Grid)
Stored = TypeVar("Stored", bound=StoredPicture | StoredGrid)


async def stored_result(result: BatchResult, urls: Urls) -> StoredResult:
    """Store the images of an answer and return it with their URLs."""
    images = await asyncio.gather(*[_image(image, urls) for image in result.images])
    grid = result.grid and await _stored(result.grid, StoredGrid, urls)
    own = {name: getattr(result, name) for name in Result.model_fields}
    return StoredResult(**own | {"warnings": [*result.warnings, *urls.warnings]}, images=images, grid=grid)


async def stored_events(events: AsyncIterator[Event], urls: Urls) -> AsyncGenerator[Event | StoredEvent]:
    """Store a stream's images and grid, and yield its events with their URLs."""
    async for event in events:
        yield await stored_event(event, urls)


async def stored_event(event: Event, urls: Urls) -> Event | StoredEvent:
    """Store the picture of an event, if it has one, and return the event with its URL."""
    match event:
        case ImageEvent():
            return await _stored(event, StoredImageEvent, urls)
        case GridEvent():
            return await _stored(event, StoredGridEvent, urls)
        case CompletedEvent():
            return event.model_copy(update={"warnings": [*event.warnings, *urls.warnings]})
        case _:
            return event


async def _image(image: Image, urls: Urls) -> StoredPicture | Image:
    return await _stored(image, StoredPicture, urls) if isinstance(image, Picture) else image


async def _stored(picture: Sent, kind: type[Stored], urls: Urls) -> Stored | Sent:
    """Return a picture with its URL, or as it is where it could not be stored."""
    url = await urls.of(picture)
    return picture if url is None else kind(**picture.model_dump(exclude={"b64_json"}), url=url)
