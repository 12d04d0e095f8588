"""Translates the service's answers and events to fal's."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from pydantic import BaseModel

from serve_app import schemas as own
from serve_app.errors import ServiceError
from serve_app.ingress.fal.errors import body_of
from serve_app.ingress.fal.schemas import Failure, FastSdxlOutput, File, PreviewFrame
from serve_app.ingress.file_urls import UrlOf
from serve_app.ingress.problems import problem_of


async def output(
    images: Iterable[own.Image],
    seed: int,
    prompt: str,
    timings: own.Timings,
    warnings: list[str],
    url_of: UrlOf,
) -> FastSdxlOutput:
    """Return the output of a request: its images, the reasons for missing ones, and warnings."""
    pictures = [image for image in images if isinstance(image, own.Picture)]
    return FastSdxlOutput(
        images=[_file(picture, await url_of(picture)) for picture in pictures],
        timings={"inference": timings.denoise, **dict(timings)},
        seed=seed,
        seeds=[picture.seed for picture in pictures],
        prompt=prompt,
        failures=[
            Failure(image_index=image.index, seed=image.seed, **dict(image.error))
            for image in images
            if not isinstance(image, own.Picture)
        ],
        warnings=warnings,
    )


async def frames(events: AsyncIterator[own.Event], url_of: UrlOf) -> AsyncGenerator[BaseModel]:
    """Yield a stream's frames: previews of one image each, then the output or an error."""
    images: dict[int, own.Image] = {}
    async for event in events:
        match event:
            case own.StartEvent():
                seed, prompt, warnings = event.seeds[0], event.parameters.prompt, event.warnings
            case own.PreviewEvent():
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
                try:
                    yield await output(pictures, seed, prompt, event.timings, warnings, url_of)
                except ServiceError as error:
                    yield body_of(problem_of(error))
            case own.ErrorEvent():
                yield body_of(event.error)


async def data_uri(picture: own.Picture | own.Grid) -> str:
    return _data_uri(picture)


def _data_uri(file: own.Picture | own.Grid | own.PreviewEvent) -> str:
    return f"data:{file.media_type};base64,{file.b64_json}"


def _preview(event: own.PreviewEvent) -> PreviewFrame:
    return PreviewFrame(
        images=[_file(event, _data_uri(event))],
        image_index=event.index,
        seed=event.seed,
        step=event.step,
        num_inference_steps=event.num_inference_steps,
    )


def _file(image: own.Picture | own.PreviewEvent, url: str) -> File:
    return File(
        url=url,
        width=image.width,
        height=image.height,
        content_type=image.media_type,
        file_name=None if url.startswith("data:") else url.rpartition("/")[2],
        model=image.model if isinstance(image, own.Picture) else None,
        file_size=len(image.b64_json) // 4 * 3 - image.b64_json.count("=", -2),
    )
