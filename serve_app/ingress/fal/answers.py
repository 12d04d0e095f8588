"""Translates the service's answers and events to fal's."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from pydantic import BaseModel

from serve_app import schemas as own
from serve_app.ingress.fal.errors import body_of
from serve_app.ingress.fal.schemas import Failure, FastSdxlOutput, File, PreviewFrame
from serve_app.ingress.file_urls import Urls


async def output(
    images: Iterable[own.Image],
    seed: int,
    prompt: str,
    timings: own.Timings,
    warnings: list[str],
    urls: Urls | None,
) -> FastSdxlOutput:
    """Return the output of a request: its images, the reasons for missing ones, and warnings.

    Without `urls`, or where an image could not be stored, it is a data URI.
    """
    pictures = [image for image in images if isinstance(image, own.Picture)]
    files = await asyncio.gather(*[_stored(picture, urls) for picture in pictures])
    return FastSdxlOutput(
        images=files,
        timings={"inference": timings.denoise, **dict(timings)},
        seed=seed,
        seeds=[picture.seed for picture in pictures],
        prompt=prompt,
        failures=[
            Failure(image_index=image.index, seed=image.seed, **dict(image.error))
            for image in images
            if not isinstance(image, own.Picture) and image.error.type != own.NOT_KEPT
        ],
        warnings=[*warnings, *urls.warnings] if urls else warnings,
    )


async def frames(events: AsyncIterator[own.Event], urls: Urls | None) -> AsyncGenerator[BaseModel]:
    """Yield a stream's frames: previews of one image each, then the output or an error."""
    images: dict[int, own.Image] = {}
    async for event in events:
        match event:
            case own.StartEvent():
                seed, prompt, warnings = event.seeds[0], event.parameters.prompt, event.warnings
            case own.PreviewEvent() | own.PausedEvent():
                yield _preview(event)
            case own.ImageEvent():
                images[event.index] = event
            case own.FailedEvent() | own.CancelledEvent():
                images[event.index] = own.NoPicture(
                    index=event.index, seed=event.seed, status=event.type, error=event.error
                )
            case own.CompletedEvent():
                warnings = [*warnings, *event.warnings]
                pictures = [images[index] for index in sorted(images)]
                yield await output(pictures, seed, prompt, event.timings, warnings, urls)
            case own.ErrorEvent():
                yield body_of(event.error)


async def _stored(picture: own.Picture, urls: Urls | None) -> File:
    url = await urls.of(picture) if urls else None
    return _file(picture, url or _data_uri(picture))


def _data_uri(file: own.Picture | own.PreviewEvent | own.PausedEvent) -> str:
    return f"data:{file.media_type};base64,{file.b64_json}"


def _preview(event: own.PreviewEvent | own.PausedEvent) -> PreviewFrame:
    return PreviewFrame(
        images=[_file(event, _data_uri(event))],
        image_index=event.index,
        seed=event.seed,
        step=event.step,
        num_inference_steps=event.num_inference_steps,
    )


def _file(image: own.Picture | own.PreviewEvent | own.PausedEvent, url: str) -> File:
    return File(
        url=url,
        width=image.width,
        height=image.height,
        content_type=image.media_type,
        file_name=None if url.startswith("data:") else url.rpartition("/")[2],
        model=image.model if isinstance(image, own.Picture) else None,
        variations=image.variations if isinstance(image, own.Picture) else (),
        file_size=len(image.b64_json) // 4 * 3 - image.b64_json.count("=", -2),
    )
