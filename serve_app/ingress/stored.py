"""Answers and events with the URL of a stored image instead of the image."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Literal

from serve_app.errors import ServiceError
from serve_app.ingress.file_urls import UrlOf
from serve_app.ingress.problems import problem_of
from serve_app.schemas import (
    Answer,
    BatchResult,
    ErrorEvent,
    Event,
    Grid,
    GridEvent,
    Image,
    ImageEvent,
    NoPicture,
    Picture,
    Result,
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


class StoredGrid(Answer):
    """The contact sheet, at a URL."""

    width: int
    height: int
    media_type: str
    url: str


class StoredResult(Result):
    """The answer of `POST /generate` with `response_format: url`."""

    images: list[StoredPicture | NoPicture]
    grid: StoredGrid | None


class StoredImageEvent(StoredPicture):
    type: Literal["image"] = "image"


class StoredGridEvent(StoredGrid):
    type: Literal["grid"] = "grid"


StoredEvent = StoredImageEvent | StoredGridEvent


async def stored_result(result: BatchResult, url_of: UrlOf) -> StoredResult:
    """Store the images of an answer and return it with their URLs."""
    return StoredResult(
        **result.model_dump(include=set(Result.model_fields)),
        images=[await _image(image, url_of) for image in result.images],
        grid=StoredGrid(**await _at_url(result.grid, url_of)) if result.grid else None,
    )


async def stored_events(events: AsyncIterator[Event], url_of: UrlOf) -> AsyncGenerator[Event | StoredEvent]:
    """Store a stream's images and grid, and yield its events with their URLs; a failure ends it with an error."""
    try:
        async for event in events:
            yield await stored_event(event, url_of)
    except ServiceError as error:
        yield ErrorEvent(error=problem_of(error))


async def stored_event(event: Event, url_of: UrlOf) -> Event | StoredEvent:
    """Store the picture of an event, if it has one, and return the event with its URL. Raises InternalError."""
    match event:
        case ImageEvent():
            return StoredImageEvent(**await _at_url(event, url_of))
        case GridEvent():
            return StoredGridEvent(**await _at_url(event, url_of))
        case _:
            return event


async def _image(image: Image, url_of: UrlOf) -> StoredPicture | NoPicture:
    return StoredPicture(**await _at_url(image, url_of)) if isinstance(image, Picture) else image


async def _at_url(picture: Picture | Grid, url_of: UrlOf) -> dict[str, Any]:
    return {**picture.model_dump(exclude={"b64_json"}), "url": await url_of(picture)}
